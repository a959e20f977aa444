"""A classifier that is fitted first: searched and tried where it can be, left out elsewhere."""

import pytest

from nbtl_search import space
from nbtl_search.cli.search import _say_created
from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, Facts, StudySpec

FITTED = {"name": "fitted", "dials": {"head_start": "logistic"}}
SPEC = {
    "name": "x",
    "data": {"dataset": "x"},
    "model": {"name": "resnet18"},
    "search": {
        "rows": {"head_start": {"options": ["random", "logistic"]}},
        "known": [{"name": "default"}, FITTED, {"name": "other"}],
    },
}


def facts(**changes):
    plain = {
        "n_blocks": 9,
        "n_classes": 3,
        "n_train": 320,
        "n_val": 1,
        "n_test": 1,
        "data_digest": "a",
        "weights_digest": "b",
    }
    return Facts.parse(plain | changes)


CANNOT = [
    pytest.param({"linear_head": False}, "the classifier of resnet18 is not one", id="layers"),
    pytest.param({"weights_digest": "random"}, "the weights are random", id="random"),
]


def built_for(spec):
    assert spec.facts is not None
    return space.build_for(spec.search, spec.facts)


def test_where_it_can_be_it_is_searched_and_the_classifier_alone_is_new_with_it(capsys):
    spec = StudySpec.parse(SPEC).with_facts(facts())
    built = built_for(spec)
    assert built.row("head_start") is not None
    dials = [space.dials_of(built, point) for point in space.design(built, n=64, seed=0)]
    fitted = [one for one in dials if one.head_start == "logistic"]
    assert 16 < len(fitted) < 48
    assert {one.reinit_layers for one in fitted} == {1}
    assert {one.reinit_layers for one in dials} == {1, 2, 3}
    assert [known.name for known in spec.search.known] == ["default", "fitted", "other"]
    _say_created(spec, (), asked=StudySpec.parse(SPEC))
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "says"), CANNOT)
def test_where_it_cannot_be_row_and_recipes_are_left_out_and_it_is_said(changes, says, capsys):
    spec = StudySpec.parse(SPEC).with_facts(facts(**changes))
    built = built_for(spec)
    assert built.row("head_start") is None
    assert [known.name for known in spec.search.known] == ["default", "other"]
    assert spec.with_facts(facts(**changes)) == spec
    _say_created(spec, (), asked=StudySpec.parse(SPEC))
    assert f"left out head_start, fitted: {says}" in capsys.readouterr().out


@pytest.mark.parametrize(("changes", "_says"), CANNOT)
def test_a_default_that_cannot_be_trained_is_refused(changes, _says):
    search = {"known": [{"name": "default", "dials": {"head_start": "logistic"}}]}
    spec = StudySpec.parse(SPEC | {"search": search})
    assert spec.with_facts(facts()).search == spec.search
    with pytest.raises(SpecError, match="the default recipe must be one that"):
        spec.with_facts(facts(**changes))


def test_recipes_of_advice_that_fit_it_are_outside_a_space_without_it():
    spec = StudySpec.parse(SPEC).with_facts(facts(linear_head=False))
    built = built_for(spec)
    assert space.outside(built, Dials(head_start="logistic"))
