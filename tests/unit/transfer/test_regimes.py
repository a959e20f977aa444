"""The survey's regimes: what it says of their order, and decay counted in updates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.errors import SpecError
from nbtl_search.space.regimes import (
    SURVEY,
    SurveyRegime,
    decay_updates,
    effective_rate,
    rate_of,
    starting_recipe,
    survey_regime,
)
from nbtl_search.spec import Dials, TrainSettings
from nbtl_search.training.optimiser import learning_rate
from nbtl_search.transfer.learning_rates import decay_in_updates

LAWS = settings(max_examples=60, deadline=None, derandomize=True)
SIMILAR = {"larger-similar": "larger-dissimilar", "smaller-similar": "smaller-dissimilar"}
SMALLER = {"larger-similar": "smaller-similar", "larger-dissimilar": "smaller-dissimilar"}


def lr_high(regime: SurveyRegime) -> float:
    return float(starting_recipe(regime).dials["lr_high"])


@pytest.mark.parametrize(("similar", "dissimilar"), SIMILAR.items())
def test_more_similar_is_slower_with_less_momentum_and_decays_faster(similar, dissimilar):
    a, b = SURVEY[similar], SURVEY[dissimilar]
    assert lr_high(similar) < lr_high(dissimilar)
    assert a.effective_lr < b.effective_lr
    assert a.momentum <= b.momentum
    assert decay_updates(similar, n_updates=1000) < decay_updates(dissimilar, n_updates=1000)


@pytest.mark.parametrize(("larger", "smaller"), SMALLER.items())
def test_smaller_decays_faster(larger, smaller):
    assert decay_updates(smaller, n_updates=1000) < decay_updates(larger, n_updates=1000)


@pytest.mark.parametrize("regime", SURVEY)
def test_a_recipe_has_its_effective_rate_and_valid_dials(regime):
    recipe = starting_recipe(regime)
    counted = {k: v for k, v in recipe.dials.items() if not isinstance(v, str)}
    dials = Dials.parse(counted)
    rate = effective_rate(dials.lr_high, dials.momentum)
    assert rate == pytest.approx(SURVEY[regime].effective_lr, rel=1e-5)
    assert regime in recipe.name
    assert "inferred" in recipe.reason
    # Layer-wise rates and L2-SP are dials that only count where blocks are.
    assert ("lr_low_ratio" in recipe.dials) == (recipe.dials["n_low"] != 0)
    assert ("alpha" in recipe.dials) == (recipe.dials["n_l2sp"] != 0)


@LAWS
@given(st.floats(1e-5, 1), st.floats(0, 0.99))
def test_rate_and_effective_rate_are_inverse(lr, momentum):
    assert rate_of(effective_rate(lr, momentum), momentum) == pytest.approx(lr)


def test_the_effective_rate_is_what_a_constant_gradient_moves_in_the_long_run():
    velocity = moved = 0.0
    for _ in range(200):
        velocity = 0.8 * velocity + 1.0
        moved = 0.01 * velocity
    assert moved == pytest.approx(effective_rate(0.01, 0.8))


@pytest.mark.parametrize("momentum", [1, -0.1, 2])
def test_impossible_momenta_are_refused(momentum):
    for function in (effective_rate, rate_of):
        with pytest.raises(SpecError, match="0 <= momentum < 1"):
            function(0.1, momentum)


@pytest.mark.parametrize(
    ("n_train", "n_classes", "similar", "expected"),
    [
        (3760, 47, True, "smaller-similar"),
        (8144, 196, False, "smaller-dissimilar"),
        (10_000, 100, True, "larger-similar"),
        (9_999, 10, True, "smaller-similar"),
        (50_000, 1000, False, "smaller-dissimilar"),
        (1_281_167, 1000, False, "larger-dissimilar"),
    ],
)
def test_the_regime_of_a_target(n_train, n_classes, similar, expected):
    assert survey_regime(n_train=n_train, n_classes=n_classes, similar=similar) == expected


def test_an_empty_target_has_no_regime():
    with pytest.raises(SpecError, match="n_train >= 1"):
        survey_regime(n_train=0, n_classes=1, similar=True)


class TestDecay:
    @LAWS
    @given(
        base=st.floats(1e-4, 1),
        update=st.integers(0, 5000),
        step=st.integers(1, 500),
        rate=st.floats(0.1, 1),
        warmup=st.integers(0, 300),
    )
    def test_it_is_the_formula(self, base, update, step, rate, warmup):
        expected = base
        for _ in range(update // step):
            expected *= rate
        if update < warmup:
            expected = 1e-4 * (1 - update / warmup) + base * update / warmup
        got = decay_in_updates(
            base, update=update, decay_updates=step, decay_rate=rate, warmup_updates=warmup
        )
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-300)

    @LAWS
    @given(
        epoch=st.integers(0, 40),
        decay_epochs=st.integers(1, 12),
        n_updates=st.integers(1, 200),
        warmup_epochs=st.integers(0, 5),
    )
    def test_at_each_epochs_start_it_is_the_schedule_in_epochs(
        self, epoch, decay_epochs, n_updates, warmup_epochs
    ):
        train = TrainSettings(epochs=41, decay_epochs=decay_epochs, warmup_epochs=warmup_epochs)
        got = decay_in_updates(
            0.02,
            update=epoch * n_updates,
            decay_updates=decay_epochs * n_updates,
            decay_rate=train.decay_rate,
            warmup_updates=warmup_epochs * n_updates,
            warmup_lr=train.warmup_lr,
        )
        assert got == pytest.approx(learning_rate(0.02, epoch=epoch, train=train), rel=1e-9)

    def test_a_step_is_at_least_one_update(self):
        assert decay_updates("smaller-similar", n_updates=3) == 1

    @pytest.mark.parametrize(("update", "step"), [(-1, 5), (3, 0)])
    def test_what_cannot_be_is_refused(self, update, step):
        with pytest.raises(SpecError, match="decay_updates >= 1"):
            decay_in_updates(0.1, update=update, decay_updates=step, decay_rate=0.9)
