"""The comparisons of recipes: agreement with scipy, laws, edge cases."""

import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given

from nbtl_search.spec.verdict import Interval, Summary
from nbtl_search.study import seed_statistics
from nbtl_search.study.seed_statistics import Candidate

TOP1 = st.floats(0, 100, width=32)
SAMPLE = st.lists(TOP1, min_size=2, max_size=8)
CONFIDENCE = st.floats(0.55, 0.995)
PAIRS = st.dictionaries(st.integers(0, 20), st.tuples(TOP1, TOP1), min_size=2, max_size=8)


def lower_bound(values, **settings):
    """Return the bound of a candidate alone."""
    return seed_statistics.lower_bounds({(0,): values}, **settings)[0,]


def choose(groups, *, default):
    """Choose among trials alone."""
    alone: dict[Candidate, list[float]] = {(trial,): values for trial, values in groups.items()}
    (winner,) = seed_statistics.choose(alone, default=(default,))
    return winner


@given(values=SAMPLE)
def test_the_summary_is_numpys(values):
    found = seed_statistics.summary(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert found.std == pytest.approx(np.std(values, ddof=1), rel=1e-6, abs=1e-6)


@given(values=SAMPLE, confidence=CONFIDENCE)
def test_the_lower_bound_is_the_end_of_scipys_interval(values, confidence):
    assume(np.std(values) > 1e-3)
    low, _ = scipy.stats.t.interval(
        2 * confidence - 1,
        len(values) - 1,
        loc=np.mean(values),
        scale=scipy.stats.sem(values),
    )
    assert lower_bound(values, confidence=confidence) == pytest.approx(low, abs=1e-6)


@given(pairs=PAIRS, confidence=CONFIDENCE)
def test_the_paired_gain_is_scipys(pairs, confidence):
    assume(np.std([one - other for one, other in pairs.values()]) > 1e-3)
    ours = {seed: one for seed, (one, _) in pairs.items()}
    theirs = {seed: other for seed, (_, other) in pairs.items()}
    found = seed_statistics.paired_gain(ours, theirs, confidence=confidence)
    expected = scipy.stats.ttest_rel(
        list(ours.values()), list(theirs.values())
    ).confidence_interval(confidence)
    assert found is not None
    assert found.n == len(pairs)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_figures_worked_out_by_hand():
    assert seed_statistics.summary([70.0, 72.0, 74.0]) == Summary(n=3, mean=72.0, std=2.0)
    # t_{0.9, 2} = 1.885618 and t_{0.975, 2} = 4.302653, from printed tables
    assert lower_bound([70.0, 72.0, 74.0]) == pytest.approx(72 - 1.885618 * 2 / 3**0.5)
    gain = seed_statistics.paired_gain({0: 71.0, 1: 74.0, 2: 73.0}, {0: 70.0, 1: 71.0, 2: 71.0})
    assert gain is not None
    assert (gain.n, gain.mean, gain.confidence) == (3, 2.0, 0.95)
    assert gain.low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert gain.high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert gain.is_tie


@given(values=SAMPLE, shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_bounds_move_and_stretch_with_the_values(values, shift, scale):
    bound = lower_bound(values)
    moved = lower_bound([scale * value + shift for value in values])
    assert bound is not None
    assert moved == pytest.approx(scale * bound + shift, abs=1e-6)


@given(values=SAMPLE, order=st.randoms(use_true_random=False))
def test_the_order_of_the_seeds_leaves_no_trace(values, order):
    shuffled = values.copy()
    order.shuffle(shuffled)
    assert seed_statistics.summary(shuffled) == seed_statistics.summary(values)
    assert lower_bound(shuffled) == lower_bound(values)


@given(pairs=PAIRS, extra=st.dictionaries(st.integers(30, 40), TOP1, max_size=3))
def test_a_gain_counts_common_seeds_and_turns_over(pairs, extra):
    ours = {seed: one for seed, (one, _) in pairs.items()}
    theirs = {seed: other for seed, (_, other) in reversed(pairs.items())}
    found = seed_statistics.paired_gain(ours, theirs)
    back = seed_statistics.paired_gain(theirs, ours)
    assert found is not None
    assert back is not None
    assert seed_statistics.paired_gain(ours | extra, theirs) == found
    assert found.low is not None
    assert found.high is not None
    assert (back.mean, back.low, back.high) == (-found.mean, -found.high, -found.low)


def test_few_values_say_little():
    assert seed_statistics.summary([]) == Summary(n=0, mean=None, std=None)
    assert seed_statistics.summary([71.5]) == Summary(n=1, mean=71.5, std=None)
    assert lower_bound([]) is None
    assert lower_bound([71.5]) is None
    assert seed_statistics.paired_gain({0: 1.0}, {1: 2.0}) is None
    single = seed_statistics.paired_gain({0: 71.0, 1: 70.0}, {1: 69.0})
    assert single == Interval(n=1, mean=1.0, low=None, high=None)
    assert single.is_tie


@given(value=TOP1, n=st.integers(2, 9))
def test_equal_values_have_no_spread(value, n):
    assert seed_statistics.summary([value] * n) == Summary(n=n, mean=value, std=0.0)
    assert lower_bound([value] * n) == value
    gain = seed_statistics.paired_gain(dict.fromkeys(range(n), value), dict.fromkeys(range(n), 0.0))
    assert gain == Interval(n=n, mean=value, low=value, high=value)
    assert gain.is_tie == (value == 0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 1.5])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(ValueError, match="0 < confidence < 1"):
        lower_bound([1.0, 2.0], confidence=confidence)
    with pytest.raises(ValueError, match="0 < confidence < 1"):
        seed_statistics.paired_gain({0: 1.0}, {0: 2.0}, confidence=confidence)


@given(groups=st.dictionaries(st.integers(0, 9), SAMPLE, min_size=1, max_size=5))
def test_nobody_has_a_higher_bound_than_the_winner(groups):
    winner = choose(groups, default=0)
    bounds = seed_statistics.lower_bounds({(trial,): values for trial, values in groups.items()})
    known = [bound for bound in bounds.values() if bound is not None]
    assert len(known) == len(bounds)
    assert bounds[winner,] == max(known)


def test_of_equals_the_average_of_fewer_wins():
    values = [70.0, 71.0]
    averages: dict[Candidate, list[float]] = {(4, 2): values, (4, 2, 3): values}
    assert seed_statistics.choose(averages, default=(0,)) == (4, 2)
    assert seed_statistics.choose({(4,): values, **averages}, default=(0,)) == (4,)


def test_a_spread_of_next_to_nothing_does_not_decide():
    """With two runs each, 70 twice won against 74 and 68 by its own spread."""
    groups = {0: [69.0, 71.0], 5: [70.0, 70.0], 7: [74.0, 68.0]}
    assert choose(groups, default=0) == 7
    # More runs are worth more: the pooled spread is over them.
    assert choose({**groups, 9: [70.9] * 8}, default=0) == 9


@given(groups=st.dictionaries(st.integers(0, 9), st.lists(TOP1, max_size=6), min_size=1))
def test_the_spread_is_that_of_an_analysis_of_variance(groups):
    """Against numpy's residuals of all runs from their candidate's mean, in float64."""
    bounds = seed_statistics.lower_bounds({(trial,): values for trial, values in groups.items()})
    residuals = [np.array(values) - np.mean(values) for values in groups.values() if values]
    n_free = sum(map(len, residuals)) - len(residuals)
    for trial, values in groups.items():
        if not values or n_free == 0:
            assert bounds[trial,] is None
            continue
        pooled = np.sqrt(np.sum(np.concatenate(residuals) ** 2) / n_free)
        error = scipy.stats.t.ppf(0.9, n_free) * pooled / np.sqrt(len(values))
        assert bounds[trial,] == pytest.approx(np.mean(values) - error, abs=1e-6)


def test_averages_add_nothing_to_the_spread():
    recipes: dict[Candidate, list[float]] = {(0,): [70.0, 72.0], (3,): [73.0, 73.0]}
    bounds = seed_statistics.lower_bounds({**recipes, (3, 0): [50.0, 90.0]})
    alone = seed_statistics.lower_bounds(recipes)
    assert {one: bounds[one] for one in recipes} == alone
    margins = {one: np.mean(values) - (alone[one] or 0.0) for one, values in recipes.items()}
    assert bounds[3, 0] == pytest.approx(70 - margins[3,])


@pytest.mark.parametrize(
    ("groups", "default", "winner"),
    [
        ({3: [70.0, 70.0], 2: [70.0, 70.0], 5: [70.0, 70.0]}, 5, 5),  # equal: the default
        ({3: [70.0, 70.0], 2: [70.0, 70.0]}, 5, 2),  # equal without it: the lowest number
        ({0: [70.0], 4: [75.0]}, 0, 4),  # single values: their mean
        ({0: [70.0], 4: [70.0]}, 4, 4),
        ({0: [99.0], 4: [50.0, 51.0]}, 0, 0),  # the spread of the others bounds a single value
        ({0: [], 4: [50.0]}, 0, 4),
        ({0: [], 4: [50.0, 50.0], 6: [51.0]}, 0, 6),
    ],
)
def test_ties_and_missing_values(groups, default, winner):
    assert choose(groups, default=default) == winner


@pytest.mark.parametrize("groups", [{}, {0: [], 3: []}])
def test_no_winner_without_a_value(groups):
    with pytest.raises(ValueError, match="a winner must have a value"):
        choose(groups, default=0)


def top1_by_loops(arrays, labels):
    """Average and compare one image and one class at a time, in Python's own numbers."""
    right = 0
    for image, label in enumerate(labels):
        means = [
            sum(float(array[image][index]) for array in arrays) / len(arrays)
            for index in range(len(arrays[0][0]))
        ]
        right += means.index(max(means)) == label
    return 100 * right / len(labels)


@given(
    n_arrays=st.integers(1, 4),
    n=st.integers(1, 12),
    n_classes=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_the_ensemble_is_the_mean_softmax(n_arrays, n, n_classes, seed):
    random = np.random.default_rng(seed)
    # Sixteenths, so that sums are exact and ties are frequent.
    arrays = [
        (random.integers(0, 17, (n, n_classes)) / 16).astype(np.float32) for _ in range(n_arrays)
    ]
    labels = random.integers(0, n_classes, n)
    assert seed_statistics.ensemble_top1(arrays, labels) == pytest.approx(
        top1_by_loops(arrays, labels)
    )


def test_an_ensemble_of_one_is_that_one_and_copies_change_nothing():
    one = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], dtype=np.float32)
    labels = np.array([0, 1, 1])
    assert seed_statistics.ensemble_top1([one], labels) == pytest.approx(200 / 3)
    assert seed_statistics.ensemble_top1([one] * 3, labels) == pytest.approx(200 / 3)


def test_a_confident_seed_outvotes_two_that_hesitate():
    unsure = np.array([[0.45, 0.55]], dtype=np.float32)
    sure = np.array([[0.99, 0.01]], dtype=np.float32)
    assert seed_statistics.ensemble_top1([unsure, unsure, sure], np.array([0])) == 100.0


@pytest.mark.parametrize(
    ("shapes", "n_labels"),
    [([], 3), ([(3, 2), (3, 4)], 3), ([(2, 2)], 3), ([(0, 2)], 0)],
)
def test_an_ensemble_of_other_shapes_is_refused(shapes, n_labels):
    arrays = [np.zeros(shape, dtype=np.float32) for shape in shapes]
    with pytest.raises(ValueError, match="arrays of one shape"):
        seed_statistics.ensemble_top1(arrays, np.zeros(n_labels, dtype=np.int64))


def test_importing_the_module_loads_no_scipy():
    program = (
        "import sys, nbtl_search.study.seed_statistics as c; assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
