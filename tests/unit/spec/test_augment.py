"""Strength of the augmentation: one number for its parts, and what a budget bears."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtl_search.data.augment import ImageAugment
from nbtl_search.data.images import ImageFormat
from nbtl_search.errors import SpecError
from nbtl_search.spec import AugmentSettings, Dials, Facts, Recipe, StudySpec

FORMAT = ImageFormat(
    image_px=32, crop_pct=0.875, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)
FACTS = Facts(
    n_blocks=22, n_classes=47, n_train=320, n_val=1, n_test=1, data_digest="a", weights_digest="b"
)


def test_the_ends_are_flips_with_mild_crops_and_the_authors_command():
    assert AugmentSettings(strength=1.0).parts == AugmentSettings()
    weakest = AugmentSettings(strength=0.0).parts
    assert (weakest.randaugment, weakest.mixup, weakest.erasing) == ("", 0.0, 0.0)
    assert (weakest.crop_scale, weakest.hflip, weakest.label_smoothing) == ((0.25, 1.0), 0.5, 0.1)


@given(strength=st.floats(0, 1))
def test_every_strength_is_between_them_and_a_policy_that_timm_reads(strength):
    parts = AugmentSettings(strength=strength, hflip=0.3, label_smoothing=0.0).parts
    assert parts.crop_scale[0] * (1 + 1e-12) >= 0.08
    assert parts.crop_scale[0] <= 0.25 * (1 + 1e-12)
    assert (parts.mixup, parts.erasing) == (0.2 * strength, 0.5 * strength)
    assert (parts.hflip, parts.label_smoothing, parts.strength) == (0.3, 0.0, None)
    assert bool(parts.randaugment) == (round(9 * strength) > 0)
    ImageAugment(parts, FORMAT)
    assert parts.parts == parts


@pytest.mark.parametrize("part", [{"mixup": 0.1}, {"erasing": 0.0}, {"randaugment": ""}])
def test_what_the_strength_decides_is_not_set_beside_it(part):
    with pytest.raises(SpecError, match=r"^augment: .*strength decides (\w+), got both"):
        StudySpec.parse(
            {"name": "x", "data": {"dataset": "x"}, "augment": {"strength": 0.5, **part}}
        )


@pytest.mark.parametrize("value", [1.5, -0.1, "budgets"])
def test_no_other_strength_is_taken(value):
    with pytest.raises(SpecError, match=r"augment\.strength"):
        StudySpec.parse({"name": "x", "data": {"dataset": "x"}, "augment": {"strength": value}})


def test_longer_runs_bear_more():
    budget = AugmentSettings(strength="budget")
    found: list[Any] = [
        budget.for_updates(n).strength for n in (1, 100, 400, 1000, 2000, 4000, 10**6)
    ]
    assert found == sorted(found)
    assert (found[2], found[-2], found[-1]) == (0.0, 1.0, 1.0)
    assert 0.3 < found[3] < 0.5
    for fixed in (AugmentSettings(), AugmentSettings(strength=0.7)):
        assert fixed.for_updates(10) is fixed


def test_a_study_takes_it_from_its_budget_when_the_images_are_known():
    plain = {
        "name": "x",
        "data": {"dataset": "x"},
        "augment": {"strength": "budget"},
        "train": {"epochs": 100, "batch_size": 32},
    }
    spec = StudySpec.parse(plain)
    assert spec.augment.strength == "budget"
    found = spec.with_facts(FACTS)
    assert (found.facts, found.augment.strength) == (FACTS, 0.4)  # 1000 updates
    assert found.with_facts(FACTS) == found
    recipe = found.recipe(Dials())
    assert Recipe.parse_json(recipe.model_dump_json()) == recipe
    with pytest.raises(SpecError, match=r"augment\.strength must be a number"):
        _ = spec.augment.parts


def test_without_it_texts_read_as_before():
    assert "strength" not in AugmentSettings().plain()
    assert AugmentSettings(strength=0.0).plain()["strength"] == 0.0
