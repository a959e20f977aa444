"""What the page says of a diagnosis and of advice."""

import json

import pytest

from nbtl_search.reports import formats
from nbtl_search.reports.page import page
from nbtl_search.spec import Advised, Diagnosis, KnownRecipe, Measured, Prior
from tests.plausible_study import make_spec

from .test_page import NASTY, make_content  # noqa: F401  (a fixture)


@pytest.fixture
def diagnosis():
    return Diagnosis(
        dataset="shells",
        model="inception_v4",
        image_px=299,
        n_images=600,
        n_val=400,
        n_features=1536,
        n_classes=3,
        data_digest="d",
        weights_digest="w",
        measures=(
            Measured(name="fixed_accuracy", value=80.0, null=33.3, settings={"strength": 0.1}),
            Measured(name="random_accuracy", value=40.0, settings={"epochs": 4}),
            Measured(name="emd", reason=f"needs {NASTY}"),
        ),
    )


def test_measures_and_conclusion_are_on_the_page(make_content, make_trial, diagnosis):  # noqa: F811
    content = make_content([make_trial(0, value=75.0, name="default")], diagnosis=diagnosis)
    made = page(content)
    section = made[made.index('<section id="fit">') :]
    section = section[: section.index("</section>")]
    assert "accuracy, fixed features (%)" in section
    assert "-40.0 points" in section
    assert "suited" in section
    assert "strength 0.1" in section
    assert NASTY not in made
    assert "needs &lt;/script&gt;" in section


def test_advice_is_told_with_its_reasons(make_content, make_trial):  # noqa: F811
    advice = Advised(
        regime="suited",
        recipes=(KnownRecipe(name="tip", reason=f"because {NASTY}"),),
        prior={"lr_high": Prior(low=1e-3, high=1e-2, reason="low rates")},
    )
    trials = [make_trial(0, value=75.0, name="default")]
    made = page(make_content(trials, spec=make_spec().replace(advice=advice)))
    assert "the weights looked suited" in made
    assert "tip: because &lt;/script&gt;" in made
    assert "lr_high 0.001 to 0.01, 50 % of the start-up points: low rates" in made


def test_without_either_there_is_no_section(make_content, make_trial):  # noqa: F811
    assert 'id="fit"' not in page(make_content([make_trial(0, value=75.0, name="default")]))


def test_the_measures_are_a_table_for_machines(make_content, make_trial, diagnosis):  # noqa: F811
    content = make_content([make_trial(0, value=75.0, name="default")], diagnosis=diagnosis)
    rows = json.loads(formats.as_json(content))["tables"]["measures"]
    assert [(row["measure"], row["value"]) for row in rows] == [
        ("fixed_accuracy", 80.0),
        ("random_accuracy", 40.0),
        ("emd", None),
    ]
    assert "How well the weights fit" in formats.markdown(content)
