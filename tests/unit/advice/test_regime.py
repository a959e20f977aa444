"""Which side of table 7 a dataset is on, and what is said of it."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nbtl_search.advice import WARNING, conclude
from nbtl_search.advice.regime import standard_error
from nbtl_search.errors import SpecError
from nbtl_search.paper.tables import paper_tables
from nbtl_search.spec import Diagnosis, Measured

N_TEST = {"caltech": 16980, "cars": 8041, "aircraft": 3333, "dtd": 1880}


def accuracies(random, fixed):
    return {"random_accuracy": random, "fixed_accuracy": fixed}


@pytest.mark.parametrize("margin", [0, 3, 7])
@pytest.mark.parametrize(
    ("dataset", "regime"),
    [("caltech", "suited"), ("dtd", "suited"), ("cars", "unsuited"), ("aircraft", "unsuited")],
)
def test_the_papers_table_1_gives_the_papers_classes(diagnosed, dataset, regime, margin):
    table = paper_tables()["table1"]
    row = dict(zip(table["columns"], table["rows"][dataset], strict=True))
    measures = accuracies(row["random_init_acc"], row["fixed_features_acc"]) | {
        "emd_similarity": row["emd_domain_similarity"],
        "fisher": row["normalised_fisher_score"],
    }
    found = conclude(diagnosed(measures, n_val=N_TEST[dataset]), margin=margin)
    assert found.regime == regime
    printed = paper_tables()["table7"]["rows"][dataset]["random_minus_fixed"]
    assert found.delta == pytest.approx(printed)
    assert f"{printed:+.1f} points on {N_TEST[dataset]} validation images" in found.evidence[0]
    assert found.evidence[-1] == WARNING


@pytest.mark.parametrize(
    "measures",
    [
        {"emd": 58.0, "emd_similarity": 0.56, "emd_scale_free": 0.4},
        {"emd_similarity": 0.568, "random_accuracy": 60.0},
        {"emd_similarity": 0.568, "fixed_accuracy": 60.0},
    ],
)
def test_the_earth_movers_distance_concludes_nothing(diagnosed, measures):
    found = conclude(diagnosed(measures))
    assert (found.regime, found.delta) == ("unknown", None)
    said = [line for line in found.evidence if "concludes nothing" in line]
    assert len(said) == sum(name.startswith("emd") for name in measures)
    assert "should not be used" in said[0]
    assert "0.54, 0.568" in said[0]


@pytest.mark.parametrize(
    ("value", "null", "side"),
    [
        (4.16, 0.69, "on the suited side"),
        (2.0, 0.55, "on the suited side"),
        (1.8, 0.55, "in the gap"),
        (1.5, 0.69, "on the unsuited side"),
        (3.47, 5.08, "on the unsuited side"),
    ],
)
def test_fisher_alone_is_a_hint_and_no_conclusion(diagnosed, value, null, side):
    fisher = Measured(name="fisher", value=value, null=null)
    found = conclude(diagnosed({"fisher": fisher}))
    assert found.regime == "unknown"
    (hint,) = [line for line in found.evidence if "fisher" in line]
    assert f"excess of {value - null:.2f}, {side} of the paper's order" in hint
    assert "3.47, 1.35 | 1.18, 0.83" in hint
    assert "gap of 0.17 lies inside the finite-sample bias" in hint
    assert "low confidence" in hint


def test_fisher_without_its_null_is_compared_with_nothing(diagnosed):
    found = conclude(diagnosed({"fisher": 3.0}))
    assert found.regime == "unknown"
    assert any("without its null is compared with nothing" in line for line in found.evidence)


def test_it_says_which_accuracy_is_missing_and_why(diagnosed):
    none = Measured(name="fixed_accuracy", reason="the features must be finite, got nan; retry")
    found = conclude(diagnosed({"fixed_accuracy": none}))
    assert found.evidence[:2] == (
        "unknown: random_accuracy was not measured",
        "unknown: fixed_accuracy has no value: the features must be finite, got nan; retry",
    )


@pytest.mark.parametrize(
    ("delta", "margin", "regime"),
    [
        (-3.0, 3.0, "suited"),
        (-2.5, 3.0, "borderline"),
        (2.5, 3.0, "borderline"),
        (3.0, 3.0, "unsuited"),
        (-2.5, 0.0, "suited"),
        (2.5, 0.0, "unsuited"),
        (0.0, 0.0, "borderline"),
        (-8.0, 10.0, "borderline"),
    ],
)
def test_the_margin_divides(diagnosed, delta, margin, regime):
    found = conclude(diagnosed(accuracies(60 + delta, 60), n_val=100_000), margin=margin)
    assert found.regime == regime


def test_a_difference_inside_the_noise_is_borderline(diagnosed):
    measures = accuracies(55, 60)
    assert conclude(diagnosed(measures, n_val=10_000)).regime == "suited"
    found = conclude(diagnosed(measures, n_val=100))
    assert found.regime == "borderline"
    assert found.margin == 2 * standard_error(55, 60, n=100)
    assert any("one validation image is 1 points" in line for line in found.evidence)
    assert any("lies inside the noise" in line for line in found.evidence)
    assert any("13.8 points, twice the standard error" in line for line in found.evidence)


def test_the_standard_error_is_that_worked_out_by_hand():
    """p = (50 + 1) / 102 = 1/2 and (90 + 1) / 102: sqrt((0.25 + 0.096213) / 102) = 0.058260."""
    assert standard_error(50, 90, n=100) == pytest.approx(5.8260, abs=1e-4)
    assert standard_error(0, 100, n=1) > 30  # one image never looks certain


@given(
    random=st.floats(0, 100),
    fixed=st.floats(0, 100),
    n_val=st.integers(1, 10**6),
    margin=st.floats(0, 50),
)
def test_exchanging_the_accuracies_exchanges_the_regimes(random, fixed, n_val, margin):
    other = {"suited": "unsuited", "unsuited": "suited", "borderline": "borderline"}
    found = conclude(diagnosis(random, fixed, n_val), margin=margin)
    back = conclude(diagnosis(fixed, random, n_val), margin=margin)
    assert back.regime == other[found.regime]
    assert (found.regime == "borderline") == (abs(random - fixed) < found.margin)
    assert found.margin >= margin


@pytest.mark.parametrize(("value", "regime"), [(21.0, "unknown"), (35.0, "suited")])
def test_training_that_is_still_at_chance_is_compared_with_nothing(diagnosed, value, regime):
    short = Measured(name="random_accuracy", value=value, null=20.0, settings={"epochs": 2})
    found = conclude(diagnosed({"random_accuracy": short, "fixed_accuracy": 80}))
    assert found.regime == regime
    said = [line for line in found.evidence if "noise of chance, 20.0" in line]
    assert len(said) == (regime == "unknown")
    assert all("--random-epochs" in line for line in said)
    assert (found.delta is None) == (regime == "unknown")


def test_fisher_is_no_hint_where_the_ridge_makes_it(diagnosed):
    settings: dict[str, int] = {"n": 120, "d": 1280, "n_classes": 5}
    fisher = Measured(name="fisher", value=78010.0, null=25810.0, settings=dict(settings))
    found = conclude(diagnosed({"fisher": fisher}))
    assert any("its size is the ridge's" in line for line in found.evidence)
    assert not any("78010" in line for line in found.evidence)


def test_a_reduced_budget_is_named(diagnosed):
    assert not any("reduced" in line for line in conclude(diagnosed(accuracies(60, 80))).evidence)
    short = Measured(name="random_accuracy", value=60, settings={"epochs": 12})
    found = conclude(diagnosed({"random_accuracy": short, "fixed_accuracy": 80}))
    (said,) = [line for line in found.evidence if "reduced budget" in line]
    assert "12 epochs" in said
    assert "sign" in said
    assert "leans to 'suited'" in said


@pytest.mark.parametrize("margin", [-1, float("nan")])
def test_a_margin_below_zero_is_refused(diagnosed, margin):
    with pytest.raises(SpecError, match="margin >= 0"):
        conclude(diagnosed(), margin=margin)


def test_every_line_is_one_line(diagnosed):
    fisher = Measured(name="fisher", value=2.0, null=0.5)
    found = conclude(diagnosed({"fisher": fisher, "emd": 3.0}))
    assert all(line and "\n" not in line for line in found.evidence)


def diagnosis(random, fixed, n_val):
    return Diagnosis(
        dataset="flowers",
        model="m",
        image_px=64,
        n_images=10,
        n_val=n_val,
        n_features=8,
        n_classes=2,
        data_digest="d",
        weights_digest="w",
        measures=(
            Measured(name="random_accuracy", value=random),
            Measured(name="fixed_accuracy", value=fixed),
        ),
    )
