"""A default for runs of few updates: which recipe it is, and what becomes of the other."""

import pytest

from nbtl_search.cli.search import _say_created
from nbtl_search.spec import Facts, StudySpec
from nbtl_search.spec.study import shipped_study

KNOWN = [
    {"name": "default", "dials": {"reinit_layers": 2}},
    {"name": "other", "dials": {"reinit_layers": 3}},
    {"name": "one-new", "dials": {"reinit_layers": 1}, "default_below": 60},
    {"name": "fitted", "dials": {"head_start": "logistic"}, "default_below": 20},
]
AS_WRITTEN = {"default": 2, "other": 3, "one-new": 1, "fitted": "logistic"}


def spec_of(n_updates, **changes):
    """Return a study of runs of so many updates, as written and as created."""
    plain = {
        "name": "x",
        "data": {"dataset": "x"},
        "train": {"epochs": n_updates, "batch_size": 32},
        "search": {"known": KNOWN},
    }
    asked = StudySpec.parse(plain | changes)
    return asked, asked.with_facts(facts())


def facts():
    return Facts(
        n_blocks=9, n_classes=3, n_train=32, n_val=1, n_test=1, data_digest="a", weights_digest="b"
    )


def known_of(spec):
    return {
        known.name: known.dials.get("head_start", known.dials.get("reinit_layers"))
        for known in spec.search.known
    }


@pytest.mark.parametrize(
    ("n_updates", "expected"),
    [
        (60, AS_WRITTEN),
        (
            59,
            {
                "default": 1,
                "other": 3,
                "default-from-60-updates": 2,
                "fitted": "logistic",
            },
        ),
        (20, {"default": 1, "other": 3, "default-from-60-updates": 2, "fitted": "logistic"}),
        (19, {"default": "logistic", "other": 3, "one-new": 1, "default-from-20-updates": 2}),
    ],
)
def test_the_default_is_the_one_for_so_many_updates(n_updates, expected):
    asked, spec = spec_of(n_updates)
    assert known_of(asked) == AS_WRITTEN
    assert list(known_of(spec).items()) == list(expected.items())


@pytest.mark.parametrize("n_updates", [10, 40, 100])
def test_with_the_facts_again_it_is_the_same(n_updates):
    _, spec = spec_of(n_updates)
    again = spec.with_facts(facts())
    assert again == spec
    assert again.fingerprint() == spec.fingerprint()


def test_recipes_without_it_are_written_as_before():
    _, spec = spec_of(40)
    assert "default_below" not in spec.model_dump_json()


def test_create_says_which_it_is(capsys):
    asked, spec = spec_of(40)
    _say_created(spec, (), asked=asked)
    out = capsys.readouterr().out
    assert "default  the recipe 'one-new', as runs have fewer than 60 updates" in out
    assert "left out" not in out
    asked, spec = spec_of(100)
    _say_created(spec, (), asked=asked)
    assert "  default" not in capsys.readouterr().out


def test_a_folder_of_few_images_begins_with_one_new_layer():
    plain = shipped_study("folder")
    few = StudySpec.parse(plain | {"train": plain["train"] | {"epochs": 10}}).with_facts(facts())
    many = StudySpec.parse(plain).with_facts(facts().replace(n_train=3200))
    assert few.search.known[0].dials["reinit_layers"] == 1
    assert many.search.known[0].dials["reinit_layers"] == 2
    assert {str(known.dials) for known in few.search.known} == {
        str(known.dials) for known in many.search.known
    }


def test_a_recipe_that_the_network_cannot_train_is_no_default():
    asked, _ = spec_of(10)
    spec = asked.with_facts(facts().replace(linear_head=False))
    expected = {"default": 1, "other": 3, "default-from-60-updates": 2}
    assert list(known_of(spec).items()) == list(expected.items())
