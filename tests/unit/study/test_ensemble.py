"""The ensemble of final runs: agreement with plain loops, laws, edge cases."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from nbtl_search.study.verdicts import ensemble_top1


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
    assert ensemble_top1(arrays, labels) == pytest.approx(top1_by_loops(arrays, labels))


def test_an_ensemble_of_one_is_that_one_and_copies_change_nothing():
    one = np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1]], dtype=np.float32)
    labels = np.array([0, 1, 1])
    assert ensemble_top1([one], labels) == pytest.approx(200 / 3)
    assert ensemble_top1([one] * 3, labels) == pytest.approx(200 / 3)


def test_a_confident_seed_outvotes_two_that_hesitate():
    unsure = np.array([[0.45, 0.55]], dtype=np.float32)
    sure = np.array([[0.99, 0.01]], dtype=np.float32)
    assert ensemble_top1([unsure, unsure, sure], np.array([0])) == 100.0


@pytest.mark.parametrize(
    ("shapes", "n_labels"),
    [([], 3), ([(3, 2), (3, 4)], 3), ([(2, 2)], 3), ([(0, 2)], 0)],
)
def test_an_ensemble_of_other_shapes_is_refused(shapes, n_labels):
    arrays = [np.zeros(shape, dtype=np.float32) for shape in shapes]
    with pytest.raises(ValueError, match="arrays of one shape"):
        ensemble_top1(arrays, np.zeros(n_labels, dtype=np.int64))
