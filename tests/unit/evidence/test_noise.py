"""The noise of seeds: worked out by hand, in independent arithmetic, and the laws that it obeys."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import given

from nbtl_search.evidence import noise
from nbtl_search.evidence.noise import PRIOR_DISPERSION, PRIOR_FREE, SeedNoise
from nbtl_search.spec.verdict import Summary

TOP1 = st.floats(0, 100, width=32)
GROUPS = st.lists(st.lists(TOP1, max_size=6), max_size=6)
IMAGES = st.integers(1, 10_000)
CONFIDENCE = st.floats(0.55, 0.995)


@given(values=st.lists(TOP1, min_size=2, max_size=8))
def test_the_summary_is_numpys(values):
    found = noise.summary(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)


def test_few_values_have_no_mean_or_no_spread():
    assert noise.summary([]) == Summary(n=0, mean=None, std=None)
    assert noise.summary([71.5]) == Summary(n=1, mean=71.5, std=None)
    assert noise.summary([71.5] * 3) == Summary(n=3, mean=71.5, std=0.0)


@given(values=st.lists(TOP1, min_size=1, max_size=8), data=st.data())
def test_the_order_of_the_seeds_leaves_no_trace(values, data):
    assert noise.summary(data.draw(st.permutations(values))) == noise.summary(values)


def test_figures_worked_out_by_hand():
    # 100 images, half of them right: p = 51 / 102, so the binomial variance is 1e4 / 4 / 100 = 25.
    assert noise.binomial_variance(50.0, n_images=100) == pytest.approx(25.0)
    found = noise.seed_noise([[45.0, 55.0], [70.0]], n_images=100)
    # One degree of freedom with variance 50, which is 2 units, beside four of one unit.
    assert found.n_free == 5.0
    assert found.dispersion == pytest.approx(6 / 5)
    assert found.variance(50.0) == pytest.approx(30.0)
    gain = noise.gain({1: 51.0, 2: 49.0}, {1: 50.0, 2: 50.0}, noise=found)
    assert gain is not None
    # Two means of two runs: 30 / 2 + 30 / 2; t_{0.975, 5} = 2.570582, from printed tables.
    assert (gain.n, gain.mean, gain.confidence) == (2, 0.0, 0.95)
    assert gain.high == pytest.approx(2.570582 * 30**0.5, rel=1e-6)


def test_without_repeats_the_prior_is_all_there_is():
    for groups in ([], [[70.0], [10.0]]):
        found = noise.seed_noise(groups, n_images=50)
        assert found == SeedNoise(dispersion=PRIOR_DISPERSION, n_free=PRIOR_FREE, n_images=50)


@given(groups=GROUPS, n_images=IMAGES)
def test_the_dispersion_is_that_of_independent_arithmetic(groups, n_images):
    """Against numpy's residuals in units of each recipe's binomial deviation."""
    residuals, n_free = [], PRIOR_FREE
    for values in groups:
        if len(values) < 2:
            continue
        p = (np.mean(values, dtype=np.float64) / 100 * n_images + 1) / (n_images + 2)
        unit = 100 * np.sqrt(p * (1 - p) / n_images)
        residuals += list((np.array(values, np.float64) - np.mean(values, dtype=np.float64)) / unit)
        n_free += len(values) - 1
    expected = (PRIOR_FREE * PRIOR_DISPERSION + np.sum(np.square(residuals))) / n_free
    found = noise.seed_noise(groups, n_images=n_images)
    assert found.n_free == n_free
    assert found.dispersion == pytest.approx(expected, rel=1e-6)


@given(
    values=st.dictionaries(st.integers(0, 9), st.tuples(TOP1, TOP1), min_size=1),
    n_images=IMAGES,
    confidence=CONFIDENCE,
)
def test_no_interval_has_no_width_and_turned_round_it_is_the_mirror(values, n_images, confidence):
    ours = {seed: one for seed, (one, _) in values.items()}
    theirs = {seed: other for seed, (_, other) in values.items()}
    found = noise.seed_noise([list(ours.values()), list(theirs.values())], n_images=n_images)
    gain = noise.gain(ours, theirs, noise=found, confidence=confidence)
    back = noise.gain(theirs, ours, noise=found, confidence=confidence)
    assert gain is not None
    assert back is not None
    assert gain.low < gain.mean < gain.high
    assert (back.low, back.high) == pytest.approx((-gain.high, -gain.low))
    t = scipy.stats.t.ppf((1 + confidence) / 2, found.n_free)
    variances = [found.variance(float(np.mean(list(side.values())))) for side in (ours, theirs)]
    error = np.sqrt(sum(variances) / len(values))
    assert gain.high - gain.mean == pytest.approx(t * error, rel=1e-6)


def test_seeds_that_only_one_has_do_not_count():
    found = noise.seed_noise([[70.0, 72.0]], n_images=100)
    both = noise.gain({1: 70.0}, {1: 68.0}, noise=found)
    assert noise.gain({1: 70.0, 2: 99.0}, {1: 68.0, 3: 10.0}, noise=found) == both
    assert noise.gain({1: 70.0}, {2: 68.0}, noise=found) is None


@given(accuracy=TOP1, n_images=IMAGES)
def test_more_images_vary_less_and_none_do_not_vary(accuracy, n_images):
    variance = noise.binomial_variance(accuracy, n_images=n_images)
    assert 0 < noise.binomial_variance(accuracy, n_images=4 * n_images) < variance
    mirrored = noise.binomial_variance(100 - accuracy, n_images=n_images)
    assert mirrored == pytest.approx(variance, rel=1e-4)


def test_a_probability_is_scipys():
    found = noise.seed_noise([[70.0, 72.0, 73.0]], n_images=100)
    expected = scipy.stats.t.sf(-1.5 / 2.0, found.n_free)
    assert found.probability_above(1.5, variance=4.0) == pytest.approx(expected)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 1.5])
def test_a_confidence_that_is_none_is_refused(confidence):
    found = noise.seed_noise([], n_images=10)
    with pytest.raises(ValueError, match="0 < confidence < 1"):
        noise.gain({0: 1.0}, {0: 2.0}, noise=found, confidence=confidence)


def test_importing_the_module_loads_no_scipy():
    program = (
        "import sys, nbtl_search.evidence.values, nbtl_search.evidence.noise;"
        "assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
