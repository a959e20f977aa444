"""Warm start: how close datasets are, and in which order their studies' recipes come."""

import math

import pytest

from nbtl_search.advice import EarlierRecipe, EarlierStudy, closeness, ranked
from nbtl_search.space import effective
from nbtl_search.spec import Dials, Measured


def recipe(trial, lr, **fields):
    dials = Dials(lr_high=lr).model_dump() | fields.pop("dials", {})
    return EarlierRecipe(**{"trial": trial, "top1": 80.0, "gain": 1.0, "dials": dials, **fields})


def study(name, diagnosis, *recipes, **fields):
    values = {"model": "inception_v4", "image_px": 299, **fields}
    return EarlierStudy(study=name, diagnosis=diagnosis, recipes=recipes, **values)


def names(recipes):
    return [recipe.name for recipe in recipes]


def known_distance(a, b):
    found = closeness(a, b)
    assert found is not None
    return found


class TestCloseness:
    def test_it_is_zero_to_itself_and_symmetric(self, diagnosed):
        a = diagnosed({"leep": -1.0, "fixed_accuracy": 80.0})
        b = diagnosed({"leep": -2.0, "fixed_accuracy": 70.0, "nce": -1.0}, n_classes=20)
        assert known_distance(a, a).value == 0
        assert closeness(a, b) == closeness(b, a)
        assert known_distance(a, b).value > 0

    def test_it_is_the_mean_of_scaled_differences_worked_out_by_hand(self, diagnosed):
        a = diagnosed(
            {
                "leep": -math.log(10) / 2,
                "hscore_regularised": 4.5,
                "random_accuracy": 50.0,
                "fixed_accuracy": 80.0,
                "fisher": 3.0,
            },
            n_classes=10,
            n_images=100,
        )
        b = diagnosed(
            {
                "leep": -math.log(5) / 4,
                "hscore_regularised": 1.0,
                "random_accuracy": 75.0,
                "fixed_accuracy": 60.0,
                "fisher": 9.0,
                "nce": -1.0,
            },
            n_classes=5,
            n_images=500,
        )
        found = known_distance(a, b)
        # LEEP 1/4, H 1/2 - 1/4, fixed 0.2, delta (15 + 30) / 30, a tenfold of images
        assert found.value == pytest.approx((0.25 + 0.25 + 0.2 + 1.5 + 1) / 5)
        assert found.compared == (
            "leep",
            "hscore_regularised",
            "fixed_accuracy",
            "random - fixed",
            "images per class",
        )

    def test_training_from_scratch_is_compared_at_equal_lengths_only(self, diagnosed):
        def of(epochs):
            random = Measured(name="random_accuracy", value=50, settings={"epochs": epochs})
            return diagnosed({"fixed_accuracy": 80.0, "random_accuracy": random})

        assert "random - fixed" in known_distance(of(10), of(10)).compared
        assert "random - fixed" not in known_distance(of(10), of(20)).compared

    @pytest.mark.parametrize(
        "fields", [{"model": "resnet50"}, {"weights_digest": "v"}, {"layer": "features.9"}]
    )
    def test_nothing_is_known_across_networks_weights_and_layers(self, diagnosed, fields):
        measures = {"leep": -1.0}
        assert closeness(diagnosed(measures), diagnosed(measures)) is not None
        assert closeness(diagnosed(measures), diagnosed(measures, **fields)) is None

    def test_nothing_is_known_without_a_common_measure(self, diagnosed):
        one, other = diagnosed({"leep": -1.0}), diagnosed({"nce": -1.0})
        assert closeness(one, other) is None
        assert closeness(diagnosed({"fisher": 1.0}), diagnosed({"fisher": 1.0})) is None


class TestRanked:
    @pytest.fixture
    def here(self, diagnosed):
        return diagnosed({"leep": -1.0})

    @pytest.fixture
    def earlier(self, diagnosed):
        far, near = diagnosed({"leep": -3.0}), diagnosed({"leep": -1.1})
        return [
            study("unmeasured", None, recipe(1, 0.04), recipe(2, 0.041)),
            study("far", far, recipe(7, 0.01), recipe(3, 0.011)),
            study("near", near, recipe(5, 0.02), recipe(6, 0.021), recipe(0, 0.022)),
        ]

    def test_each_closest_gives_its_best_before_any_its_second(self, here, earlier):
        found = ranked(here, earlier, n=10)
        assert names(found) == [
            "warm-start-near-5",
            "warm-start-far-7",
            "warm-start-unmeasured-1",
            "warm-start-near-6",
            "warm-start-far-3",
            "warm-start-unmeasured-2",
            "warm-start-near-0",
        ]
        assert found[0].dials["lr_high"] == 0.02

    @pytest.mark.parametrize("n", range(9))
    def test_it_returns_at_most_n(self, here, earlier, n):
        every = ranked(here, earlier, n=100)
        assert ranked(here, earlier, n=n) == every[:n]

    def test_a_reason_says_where_it_is_from(self, here, earlier):
        near, far, unmeasured = ranked(here, earlier, n=3)
        assert near.reason == (
            "warm start: trial 5 of near, validation top-1 80.0 (one run; +1.0 over default); "
            "distance 0.01 in leep, images per class"
        )
        assert "trial 7 of far" in far.reason
        assert "unknown: it was not diagnosed" in unmeasured.reason

    def test_another_image_size_and_a_missing_default_are_named(self, here):
        other = study("small", here, recipe(1, 0.01, gain=None), image_px=112)
        (found,) = ranked(here, [other], n=1)
        assert found.reason.endswith("; at 112 px images, not 299")
        assert "its default has no result" in found.reason

    def test_other_networks_are_left_out_and_other_weights_come_last(self, here, diagnosed):
        weights = diagnosed({"leep": -1.0}, weights_digest="v")
        earlier = [
            study("resnet", None, recipe(1, 0.01), model="resnet50"),
            study("weights", weights, recipe(1, 0.02)),
            study("same", diagnosed({"leep": -3.0}), recipe(1, 0.03)),
        ]
        found = ranked(here, earlier, n=9)
        assert names(found) == ["warm-start-same-1", "warm-start-weights-1"]
        assert "other weights" in found[1].reason

    def test_equal_recipes_are_tried_once(self, here):
        idle = {"lr_low_ratio": 0.5, "alpha": 0.1}  # no effect without low and L2-SP blocks
        earlier = [
            study("one", here, recipe(1, 0.01), recipe(2, 0.02)),
            study("two", here, recipe(1, 0.01, dials=idle), recipe(2, 0.03)),
        ]
        found = ranked(here, earlier, n=9, known=[Dials(lr_high=0.02)])
        assert names(found) == ["warm-start-one-1", "warm-start-two-2"]

    def test_what_lost_to_its_default_is_left_out(self, here):
        recipes = recipe(1, 0.01, gain=0.0), recipe(2, 0.02, gain=-0.1)
        assert names(ranked(here, [study("one", here, *recipes)], n=9)) == ["warm-start-one-1"]

    def test_what_this_version_does_not_understand_is_left_out(self, here):
        recipes = recipe(1, 0.01, dials={"old_dial": 3}), recipe(2, 0.02)
        assert names(ranked(here, [study("one", here, *recipes)], n=9)) == ["warm-start-one-2"]


def test_what_differs_only_where_it_has_no_effect_is_one_recipe():
    same = [
        Dials(frozen_layers=5, n_low=5, lr_low_ratio=0.1, n_l2sp=2, alpha=0.1),
        Dials(frozen_layers=5, delta_alpha=0.1, distill_temperature=5.0, decay_factor=0.1),
        Dials(frozen_layers=5),
    ]
    assert {effective(dials) for dials in same} == {Dials(frozen_layers=5)}
    assert effective(Dials(bss=0.1)) == Dials(bss=0.1)
    pulled = Dials(n_l2sp=6, alpha=0.1, frozen_layers=5, dtnh="always")
    assert effective(pulled) == pulled
