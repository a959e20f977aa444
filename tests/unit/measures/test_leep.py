"""LEEP against loops over the paper's sums, and what must hold of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.measures.leep import leep
from nbtl_search.measures.nce import nce


def drawn(seed: int, *, n: int = 24, z: int = 5, c: int = 3, sharpness: float = 2.0):
    rng = np.random.default_rng(seed)
    logits = sharpness * rng.standard_normal((n, z))
    theta = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.concatenate([np.arange(c), rng.integers(c, size=n - c)])
    return theta, labels


def null(*images):
    return leep(*images).null


def value(*images, **settings):
    measured = leep(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal(theta, labels):
    n, n_source = theta.shape
    joint = {
        (y, z): sum(theta[i, z] for i in range(n) if labels[i] == y) / n
        for y in set(labels.tolist())
        for z in range(n_source)
    }
    marginal = [sum(p for (_, of), p in joint.items() if of == z) for z in range(n_source)]
    total = 0.0
    for i in range(n):
        likelihood = 0.0
        for z in range(n_source):
            if marginal[z] > 0:
                likelihood += joint[labels[i], z] / marginal[z] * theta[i, z]
        total += math.log(likelihood)
    return total / n


seeds = st.integers(0, 10**6)


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 30.0))
def test_agrees_with_the_papers_sums(seed, sharpness):
    theta, labels = drawn(seed, sharpness=sharpness)
    assert value(theta, labels) == pytest.approx(literal(theta, labels), abs=1e-12)


def test_by_hand():
    # Two source classes that point the right way with probability 3/4:
    # P(y|z) is theta itself, so each image has 9/16 + 1/16.
    theta = np.array([[0.75, 0.25], [0.25, 0.75]])
    assert value(theta, np.array([0, 1])) == pytest.approx(math.log(10 / 16), abs=1e-15)


@settings(max_examples=25)
@given(seeds)
def test_order_and_names_do_not_matter(seed):
    theta, labels = drawn(seed)
    rng = np.random.default_rng(seed)
    order, columns = rng.permutation(len(labels)), rng.permutation(theta.shape[1])
    names = np.array([40, 7, 21])
    again = leep(theta[order][:, columns], names[labels[order]])
    first = leep(theta, labels)
    assert again.value == pytest.approx(first.value, abs=1e-12)
    assert again.null == pytest.approx(first.null, abs=1e-12)


@settings(max_examples=25)
@given(seeds, st.floats(0.1, 30.0))
def test_lies_between_its_null_and_zero(seed, sharpness):
    """By Jensen's inequality LEEP >= -H(Y|Z) of the soft joint, and H(Y|Z) <= H(Y)."""
    theta, labels = drawn(seed, sharpness=sharpness)
    assert null(theta, labels) - 1e-12 <= value(theta, labels) <= 0


def test_a_constant_source_gives_the_null():
    labels = np.array([0, 0, 0, 1, 2, 2])
    theta = np.tile([0.5, 0.3, 0.2], (6, 1))
    measured = leep(theta, labels)
    entropy = -(math.log(3 / 6) * 3 + math.log(1 / 6) + math.log(2 / 6) * 2) / 6
    assert measured.null == pytest.approx(-entropy, abs=1e-15)
    assert measured.value == pytest.approx(-entropy, abs=1e-15)


@settings(max_examples=25)
@given(seeds)
def test_equals_nce_for_a_source_that_is_certain(seed):
    theta, labels = drawn(seed)
    certain = np.eye(theta.shape[1])[theta.argmax(axis=1)]
    assert value(certain, labels) == pytest.approx(nce(certain, labels).value, abs=1e-12)


def test_a_source_class_that_never_occurs_says_nothing():
    theta, labels = drawn(1)
    padded = np.pad(theta, ((0, 0), (0, 2)))
    assert value(padded, labels) == pytest.approx(value(theta, labels), abs=1e-15)


def test_a_perfect_source_gives_zero():
    measured = leep(np.eye(3)[[0, 1, 2, 2]], np.array([0, 1, 2, 2]))
    assert measured.value == 0.0


def test_denormal_probabilities_keep_the_value_finite():
    theta = np.array([[1.0, 5e-324], [1.0, 0.0], [1.0, 0.0]])
    measured = leep(theta, np.array([0, 1, 1]))
    assert measured.value == pytest.approx((math.log(1 / 3) + 2 * math.log(2 / 3)) / 3)


def test_a_softmax_in_single_precision_will_do():
    theta, labels = drawn(3)
    single = leep(theta.astype(np.float32), labels)
    assert single.value == pytest.approx(value(theta, labels), abs=1e-6)


def test_the_input_stays_as_it_was():
    theta, labels = drawn(4)
    before = theta.copy(), labels.copy()
    leep(theta, labels)
    np.testing.assert_array_equal(theta, before[0])
    np.testing.assert_array_equal(labels, before[1])


@pytest.mark.parametrize(
    ("theta", "labels", "said"),
    [
        ([[0.5, 0.5], [0.5, 0.5]], [0, 0], "two classes"),
        ([[0.5, 0.6], [0.5, 0.5]], [0, 1], "sum to 1"),
        ([[2.0, -1.0], [0.5, 0.5]], [0, 1], "not logits"),
        ([[math.nan, 1.0], [0.5, 0.5]], [0, 1], "finite"),
        ([[0.5, 0.5]], [0, 1], "one label per image"),
    ],
)
def test_what_has_no_value_has_a_reason(theta, labels, said):
    measured = leep(np.array(theta), np.array(labels))
    assert measured.value is None
    assert said in measured.reason
