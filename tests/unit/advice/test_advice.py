"""Advice for a study: bounded, without repetition, inside the space, and explained."""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from nbtl_search import space
from nbtl_search.advice import WARNING, EarlierRecipe, EarlierStudy, advise, prior, table7
from nbtl_search.space import effective
from nbtl_search.spec import Advised, Dials, KnownRecipe, Prior, Row, SearchSettings, StudySpec
from nbtl_search.spec.study import shipped_study

SUITED = {"random_accuracy": 40.0, "fixed_accuracy": 80.0}
UNSUITED = {"random_accuracy": 80.0, "fixed_accuracy": 40.0}
BORDERLINE = {"random_accuracy": 60.0, "fixed_accuracy": 60.0}
UNKNOWN = {"emd_similarity": 0.568}
PAPER = space.build(SearchSettings(), n_blocks=22)
BINARY = space.build(SearchSettings(space="binary"), n_blocks=22)
DEFAULT = KnownRecipe(name="default", dials={"lr_high": 0.0025, "beta": 5e-4})
FOLDER = StudySpec.parse(shipped_study("folder")).search.known


def earlier(n=8, **dials):
    recipes = tuple(
        EarlierRecipe(
            trial=trial,
            top1=90.0 - trial,
            gain=1.0,
            dials=Dials.parse({"lr_high": 0.001 * (trial + 1), "beta": 1e-4, **dials}).model_dump(),
        )
        for trial in range(n)
    )
    return EarlierStudy(
        study="flowers-1", diagnosis=None, model="inception_v4", image_px=299, recipes=recipes
    )


def names(advised):
    return [recipe.name for recipe in advised.recipes]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_trials=st.integers(1, 60),
    measures=st.sampled_from([SUITED, UNSUITED, BORDERLINE, UNKNOWN]),
    known=st.sampled_from([(), (DEFAULT,), FOLDER, (DEFAULT, *table7("suited"))]),
    searched=st.sampled_from([PAPER, BINARY, space.build(SearchSettings(), n_blocks=18)]),
    n_earlier=st.integers(0, 12),
)
def test_shares_are_bounded_and_nothing_is_tried_twice(
    diagnosed, n_trials, measures, known, searched, n_earlier
):
    advised = advise(
        diagnosed(measures),
        space=searched,
        known=known,
        n_trials=n_trials,
        earlier=[earlier(n_earlier)],
    )
    paper = [name for name in names(advised) if name.startswith("table7-")]
    memory = [name for name in names(advised) if name.startswith("warm-start-")]
    assert len(paper) + len(memory) == len(advised.recipes)
    assert len(paper) <= n_trials // 6
    assert len(memory) <= n_trials // 6
    assert len(advised.recipes) <= max(0, n_trials - len(known))
    every = [*known, *advised.recipes]
    assert len({recipe.name for recipe in every}) == len(every)
    points = [space.known_dials(recipe, space=searched) for recipe in advised.recipes]
    tried = {effective(space.known_dials(recipe, space=searched)) for recipe in known}
    assert len({effective(point) for point in points} | tried) == len(points) + len(tried)
    for recipe, point in zip(advised.recipes, points, strict=True):
        assert space.outside(searched, point) == []
        assert recipe.reason
    assert set(advised.prior) <= {row.name for row in searched.rows}
    assert advised.evidence[-1] == WARNING
    assert advised.evidence.count(WARNING) == 1
    assert Advised.parse_json(advised.model_dump_json()) == advised


def test_memory_and_table_7_take_turns(diagnosed):
    advised = advise(
        diagnosed(SUITED), space=PAPER, known=[DEFAULT], n_trials=12, earlier=[earlier()]
    )
    assert advised.regime == "suited"
    assert names(advised) == [
        "warm-start-flowers-1-0",
        "table7-dtd",
        "warm-start-flowers-1-1",
        "table7-caltech",
    ]
    assert advised.prior == prior("suited")
    assert any("2 try what earlier studies found" in line for line in advised.evidence)


def test_what_is_tried_anyway_makes_room_for_the_next(diagnosed):
    """Here the study has the DTD form and the Cars form at rate 0.01 already."""
    tried = [table7("suited")[0].replace(name="a"), table7("unsuited")[0].replace(name="b")]
    known = [DEFAULT, *tried]
    suited = advise(diagnosed(SUITED), space=PAPER, known=known, n_trials=18)
    assert names(suited) == ["table7-caltech", "table7-dtd-lr-0.005", "table7-dtd-lr-0.01"]
    unsuited = advise(diagnosed(UNSUITED), space=PAPER, known=known, n_trials=18)
    assert names(unsuited) == ["table7-cars", "table7-aircraft", "table7-cars-lr-0.004"]
    assert not any("left out" in line for line in (*suited.evidence, *unsuited.evidence))


@pytest.mark.parametrize(("n_trials", "n"), [(5, 0), (6, 0), (7, 1), (8, 2), (9, 2)])
def test_what_the_known_recipes_leave_of_the_budget_is_the_bound(diagnosed, n_trials, n):
    known = [DEFAULT, *table7("suited")]
    advised = advise(
        diagnosed(UNSUITED),
        space=PAPER,
        known=known,
        n_trials=n_trials,
        earlier=[earlier()],
    )
    assert len(advised.recipes) == n


def test_the_binary_space_holds_one_form_only_and_the_rest_is_named(diagnosed):
    advised = advise(diagnosed(SUITED), space=BINARY, known=[DEFAULT], n_trials=40)
    assert names(advised) == ["table7-caltech", "table7-caltech-lr-0.01"]
    (line,) = [line for line in advised.evidence if "left out of table 7" in line]
    assert "table7-dtd (n_l2sp = 14 is not in" in line
    assert "table7-dtd-lr-0.005" in line
    assert set(advised.prior) == {"lr_high", "n_l2sp", "alpha", "beta"}
    none = advise(diagnosed(UNSUITED), space=BINARY, known=[DEFAULT], n_trials=40)
    assert none.recipes == ()


def test_memory_outside_the_space_is_named(diagnosed):
    advised = advise(
        diagnosed(UNKNOWN),
        space=BINARY,
        known=[DEFAULT],
        n_trials=12,
        earlier=[earlier(2, reinit_layers=3)],
    )
    assert advised.recipes == ()
    (line,) = [line for line in advised.evidence if "left out of the warm start" in line]
    assert "warm-start-flowers-1-0 (reinit_layers = 3 where the space holds 1)" in line


def test_a_taken_name_is_numbered(diagnosed):
    mine = KnownRecipe(name="table7-dtd", dials={"lr_high": 0.03})
    advised = advise(diagnosed(SUITED), space=PAPER, known=[DEFAULT, mine], n_trials=12)
    assert names(advised) == ["table7-dtd-2", "table7-caltech"]


def test_unknown_advises_nothing_but_memory(diagnosed):
    alone = advise(diagnosed(UNKNOWN), space=PAPER, known=[DEFAULT], n_trials=40)
    assert (alone.regime, alone.recipes, alone.prior) == ("unknown", (), {})
    advised = advise(
        diagnosed(UNKNOWN), space=PAPER, known=[DEFAULT], n_trials=12, earlier=[earlier()]
    )
    assert names(advised) == ["warm-start-flowers-1-0", "warm-start-flowers-1-1"]


def test_the_margin_is_the_users(diagnosed):
    advised = advise(diagnosed(SUITED), space=PAPER, known=[DEFAULT], n_trials=18, margin=50.0)
    assert advised.regime == "borderline"
    assert names(advised) == ["table7-dtd", "table7-cars-lr-0.01", "table7-caltech"]


@pytest.mark.parametrize("measures", [SUITED, UNSUITED, BORDERLINE])
def test_start_up_points_follow_the_advice_into_the_space(diagnosed, measures):
    advised = advise(diagnosed(measures), space=PAPER, known=[DEFAULT], n_trials=12)
    for point in space.design(PAPER, n=8, seed=0, prior=advised.prior):
        assert space.outside(PAPER, Dials.parse(point)) == []


@pytest.mark.parametrize("measures", [SUITED, UNSUITED])
def test_a_dial_that_a_form_does_not_decide_takes_the_studys_fixed_value(diagnosed, measures):
    """No form of table 7 names momentum; plain L2 has no alpha."""
    rows = {"momentum": Row(fixed=0.8), "alpha": Row(fixed=0.01)}
    narrow = space.build(SearchSettings(rows=rows), n_blocks=22)
    advised = advise(diagnosed(measures), space=narrow, known=(), n_trials=20)
    assert advised.recipes
    for recipe in advised.recipes:
        dials = space.known_dials(recipe, space=narrow)
        assert (dials.momentum, dials.alpha) == (0.8, 0.01)
        assert space.outside(narrow, dials) == []


@pytest.mark.parametrize("dials", [{"delta": "attention", "distill": 4.0}, {"momentum": 0.5}])
def test_memory_of_methods_that_the_space_does_not_have_is_left_out(diagnosed, dials):
    advised = advise(
        diagnosed(UNKNOWN),
        space=PAPER,
        known=[DEFAULT.replace(dials={**DEFAULT.dials, **dials})],
        n_trials=12,
        earlier=[earlier(2, **dials)],
    )
    assert advised.recipes == ()
    (line,) = [line for line in advised.evidence if "left out of the warm start" in line]
    name, value = next(iter(dials.items()))
    assert f"warm-start-flowers-1-0 ({name} = {value} where the space holds" in line


@pytest.mark.parametrize(("measures", "low", "high"), [(SUITED, 0.01, 0.1), (UNSUITED, 0.05, 0.4)])
def test_the_rates_prior_is_one_of_the_effective_rate(diagnosed, measures, low, high):
    extended = space.build(SearchSettings(space="extended"), n_blocks=22)
    found = advise(diagnosed(measures), space=extended, known=(), n_trials=12).prior
    assert "lr_high" not in found
    where = found["effective_lr"]
    assert (where.low, where.high) == (low, high)
    assert where.reason.endswith("over 1 - 0.9, as the paper's momentum is 0.9")
    points = space.design(extended, n=64, seed=0, prior={"effective_lr": where})
    inside = sum(low <= point["effective_lr"] <= high for point in points)
    assert inside / len(points) > where.weight


def test_a_prior_of_all_l2sp_blocks_takes_in_a_kept_classifier():
    row = Row(options=(0, "all"))
    extended = space.build(SearchSettings(space="extended", rows={"n_l2sp": row}), n_blocks=22)
    prior = {"n_l2sp": Prior(low="14/22", high="all", weight=0.9, reason="")}
    points = space.design(extended, n=64, seed=0, prior=prior)
    assert sum(point["n_l2sp"] == 23 for point in points) / 64 == pytest.approx(0.95, abs=0.02)


def test_all_frozen_by_the_study_is_all_that_the_recipe_leaves(diagnosed):
    """Two new layers leave one block less to freeze, and idle dials take the study's values."""
    rows = {"frozen_layers": Row(fixed="all")}
    built = space.build(SearchSettings(rows=rows), n_blocks=22)
    advised = advise(
        diagnosed(UNKNOWN),
        space=built,
        known=(),
        n_trials=12,
        earlier=[earlier(2, reinit_layers=2)],
    )
    assert names(advised) == ["warm-start-flowers-1-0", "warm-start-flowers-1-1"]
    found = [space.known_dials(recipe, space=built) for recipe in advised.recipes]
    assert [one.frozen_layers for one in found] == [21, 21]


def test_a_kept_classifier_takes_no_fixed_number_of_new_layers(diagnosed):
    rows = {"reinit_layers": Row(fixed=2)}
    built = space.build(SearchSettings(space="extended", rows=rows), n_blocks=22)
    advised = advise(
        diagnosed(UNKNOWN),
        space=built,
        known=(),
        n_trials=12,
        earlier=[earlier(1, source_head="keep")],
    )
    assert names(advised) == ["warm-start-flowers-1-0"]


@pytest.mark.parametrize("name", ["n_l2sp", "n_low"])
def test_a_count_of_none_is_not_exchanged_for_the_studys(diagnosed, name):
    rows = {name: Row(fixed=5), "alpha": Row(fixed=0.01)}
    built = space.build(SearchSettings(rows=rows), n_blocks=22)
    advised = advise(diagnosed(UNKNOWN), space=built, known=(), n_trials=12, earlier=[earlier(1)])
    assert advised.recipes == ()
    assert any(f"({name} = 0 where the space holds 5)" in line for line in advised.evidence)
