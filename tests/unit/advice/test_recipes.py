"""Table 7 as recipes and priors: the paper's ratios, inside the space, each with its reason."""

import pytest

from nbtl_search import space
from nbtl_search.advice import prior, table7
from nbtl_search.paper.tables import paper_rows
from nbtl_search.spec import Dials, Regime, SearchSettings

REGIMES: tuple[Regime, ...] = ("suited", "unsuited", "borderline", "unknown")
KEYS = {"dtd": "dtd", "caltech": "caltech256", "cars": "cars", "aircraft": "aircraft"}
ALL = {recipe.name: recipe for regime in REGIMES for recipe in table7(regime)}


def count(value):
    """Return a count of Inception-v4's 22 blocks as the tables print it."""
    if value == "all":
        return 22
    return int(value.removesuffix("/22")) if isinstance(value, str) else value


def paper(n_blocks):
    return space.build(SearchSettings(), n_blocks=n_blocks)


@pytest.mark.parametrize("n_blocks", [18, 22])
@pytest.mark.parametrize("recipe", ALL.values(), ids=ALL)
def test_it_lies_in_the_paper_space(recipe, n_blocks):
    dials = space.known_dials(recipe, space=paper(n_blocks))
    assert space.outside(paper(n_blocks), dials) == []


@pytest.mark.parametrize("recipe", ALL.values(), ids=ALL)
def test_its_form_is_that_of_table_6(recipe):
    form = recipe.name.split("-")[1]
    (best,) = [row for row in paper_rows(KEYS[form]) if row.slug == "table6-optimal"]
    assert best.dials is not None
    dials = {name: count(value) for name, value in best.dials.items()}
    printed = Dials.parse(dials).model_dump()
    found = space.known_dials(recipe, space=paper(22)).model_dump()
    assert {**found, "lr_high": 0} == {**printed, "lr_high": 0}
    probe = "-lr-" in recipe.name
    assert probe == (found["lr_high"] != printed["lr_high"])
    assert probe == ("probe of the scale" in recipe.reason)
    assert f"paper table 6: {form}'" in recipe.reason.lower()
    assert f"{best.top1:.2f}" in recipe.reason


def test_the_order_is_from_the_most_useful_on():
    assert [recipe.name for recipe in table7("suited")] == [
        "table7-dtd",
        "table7-caltech",
        "table7-dtd-lr-0.005",
        "table7-dtd-lr-0.01",
        "table7-caltech-lr-0.01",
    ]
    assert [recipe.name for recipe in table7("unsuited")] == [
        "table7-cars-lr-0.01",
        "table7-cars",
        "table7-aircraft",
        "table7-cars-lr-0.004",
        "table7-aircraft-lr-0.01",
    ]


def test_borderline_alternates_both_sides_and_unknown_has_none():
    both = table7("borderline")
    assert both[::2] == table7("suited")
    assert both[1::2] == table7("unsuited")
    assert table7("unknown") == ()
    assert prior("unknown") == {}


@pytest.mark.parametrize("n_blocks", [18, 22, 54])
@pytest.mark.parametrize("regime", REGIMES)
def test_every_prior_meets_its_row_and_says_why(regime, n_blocks):
    searched = paper(n_blocks)
    for name, where in prior(regime).items():
        row = searched.row(name)
        assert row is not None
        at = [space.value_at(row, u / 100, prior=where, n_blocks=n_blocks) for u in range(100)]
        assert at != [row.domain.at(u / 100) for u in range(100)]
        assert "table " in where.reason
        assert 0 < where.weight < 1


@pytest.mark.parametrize(
    ("regime", "dataset"), [("suited", "dtd"), ("suited", "caltech256"), ("unsuited", "cars")]
)
def test_the_papers_best_lies_inside_the_prior_of_its_side(regime, dataset):
    (best,) = [row for row in paper_rows(dataset) if row.slug == "table6-optimal"]
    assert best.dials is not None
    for name, where in prior(regime).items():
        low, value, high = map(count, (where.low, best.dials[name], where.high))
        assert low <= value <= high, name


def test_where_it_is_borderline_contradictions_have_no_prior():
    assert set(prior("borderline")) == {"lr_high", "lr_low_ratio", "alpha"}
    assert prior("borderline")["lr_high"].low == prior("suited")["lr_high"].low
    assert prior("borderline")["lr_high"].high == prior("unsuited")["lr_high"].high
