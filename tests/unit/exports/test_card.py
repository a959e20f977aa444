"""What a model card says of methods: a sentence for each that was on, and none else."""

from typing import Any

import pytest

from nbtl_search.exports.card import describe_methods, describe_recipe
from nbtl_search.spec import Dials, Recipe
from nbtl_search.spec.recipe import MethodSettings

# Dials that are strengths of a method, with the dials that switch it on.
STRENGTHS: dict[str, dict[str, Any]] = {
    "delta_alpha": {"delta": "plain"},
    "distill_temperature": {"distill": 1.0},
    "decay_factor": {"decay_updates": 10},
}
FORMS: dict[str, dict[str, Any]] = {
    "delta_taps": {"delta": "plain"},
    "delta_reduction": {"delta": "plain"},
    "delta_batches": {"delta": "attention"},
    "distill_squared": {"distill": 1.0},
    "distill_teacher": {"distill": 1.0},
    "dtnh_granularity": {"dtnh": "always"},
    "bss_k": {"bss": 0.1},
    "source_hidden": {"source_head": "keep"},
}
OTHER: dict[str, Any] = {
    "frozen_layers": 3, "source_head": "keep", "head_start": "logistic", "layer_decay": 0.75,
    "delta": "plain", "delta_alpha": 0.5,
    "distill": 2.0, "distill_temperature": 7.0, "dtnh": "conflict", "bss": 0.25,
    "stochnorm_p": 0.75, "decay_updates": 200, "decay_factor": 0.7, "delta_taps": 2,
    "delta_reduction": "mean", "delta_batches": 9, "distill_squared": True,
    "distill_teacher": "precomputed", "dtnh_granularity": "block", "bss_k": 3,
    "source_hidden": (64, 32),
}  # fmt: skip
EXTENDED = sorted(
    name for name, field in Dials.model_fields.items() if field.exclude_if is not None
)


def words(dials=None, methods=None):
    recipe = Recipe.parse(
        {"data": {"dataset": "pets"}, "dials": dials or {}, "methods": methods or {}}
    )
    return describe_methods(recipe)


def test_plain_fine_tuning_has_none():
    assert words() == ()


@pytest.mark.parametrize("name", [name for name in EXTENDED if name not in STRENGTHS])
def test_every_dial_that_switches_a_method_on_gives_one_sentence(name):
    (sentence,) = words({name: OTHER[name]})
    assert sentence.endswith(".")
    assert "\n" not in sentence


@pytest.mark.parametrize("name", STRENGTHS)
def test_strengths_are_said_where_their_method_is_on_only(name):
    assert words({name: OTHER[name]}) == ()
    (usual,) = words(STRENGTHS[name])
    (other,) = words(STRENGTHS[name] | {name: OTHER[name]})
    assert f"{OTHER[name]:.3g}" in other
    assert usual != other


@pytest.mark.parametrize("name", list(MethodSettings.model_fields))
def test_forms_are_said_where_their_method_is_on_only(name):
    assert words(methods={name: OTHER[name]}) == ()
    (usual,) = words(FORMS[name])
    (other,) = words(FORMS[name], {name: OTHER[name]})
    assert usual != other


def test_all_at_once():
    dials = {name: OTHER[name] for name in EXTENDED}
    assert len(words(dials)) == len(EXTENDED) - len(STRENGTHS)


def test_the_describe_recipe_follows_the_methods():
    data = {"dataset": "pets"}
    usual = describe_recipe(Recipe.parse({"data": data}))
    assert "The classifier alone started fresh" in usual
    assert "step schedule" in usual
    dials = {"source_head": "keep", "decay_updates": 50}
    other = describe_recipe(Recipe.parse({"data": data, "dials": dials}))
    assert "The new layers on top of the kept source classifier started fresh" in other
    assert "step schedule" not in other
