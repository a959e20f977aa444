"""TransRate against explicit determinants, and what must hold of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group

from nbtl_search.measures.transrate import transrate


def drawn(seed: int, *, n: int = 20, d: int = 4, c: int = 3):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), rng.integers(c, size=n - c)])
    return rng.standard_normal((n, d)) + rng.standard_normal((c, d))[labels], labels


def value(*images, **settings):
    measured = transrate(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal_rate(rows, epsilon):
    d = len(rows[0])
    matrix = np.eye(d)
    for row in rows:
        for a in range(d):
            for b in range(d):
                matrix[a, b] += row[a] * row[b] / (len(rows) * epsilon)
    return 0.5 * math.log(np.linalg.det(matrix))


def literal(x, labels, epsilon):
    mean = sum(x) / len(x)
    rows = [row - mean for row in x]
    names = sorted(set(labels.tolist()))
    of_classes = [
        literal_rate([row for row, y in zip(rows, labels, strict=True) if y == c], epsilon)
        for c in names
    ]
    return literal_rate(rows, epsilon) - sum(of_classes) / len(names)


seeds = st.integers(0, 10**6)


@settings(max_examples=20)
@given(seeds, st.sampled_from([(20, 4), (9, 7)]), st.sampled_from([1e-4, 1e-1]))
def test_agrees_with_explicit_determinants(seed, shape, epsilon):
    x, labels = drawn(seed, n=shape[0], d=shape[1])
    measured = transrate(x, labels, epsilon=epsilon)
    assert measured.value == pytest.approx(literal(x, labels, epsilon), rel=1e-8)
    assert measured.settings["epsilon"] == epsilon


def test_by_hand():
    # Rows 1 and -1, one class each: R = R_c = 1/2 ln(1 + 1/e), so nothing is saved by the label,
    # since class blocks are not centred again.
    x = np.array([[1.0], [-1.0]])
    assert value(x, np.array([0, 1])) == pytest.approx(0.0, abs=1e-12)
    # Rows e1, -e1 in one class and e2, -e2 in another: R = ln(1 + 1/(2e)), R_c = 1/2 ln(1 + 1/e).
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    by_hand = math.log(1 + 1 / (2 * 0.5)) - 0.5 * math.log(1 + 1 / 0.5)
    measured = transrate(x, np.array([0, 0, 1, 1]), epsilon=0.5)
    assert measured.value == pytest.approx(by_hand, abs=1e-12)


@settings(max_examples=20)
@given(seeds)
def test_order_and_names_do_not_matter(seed):
    x, labels = drawn(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    again = transrate(x[order], np.array([8, 3, 5])[labels[order]])
    assert again.value == pytest.approx(value(x, labels), rel=1e-10)


@settings(max_examples=20)
@given(seeds, st.floats(-100, 100))
def test_rotation_and_translation_do_not_matter(seed, shift):
    x, labels = drawn(seed)
    moved = x @ ortho_group.rvs(4, random_state=seed) + shift
    assert value(moved, labels) == pytest.approx(value(x, labels), rel=1e-8)


@settings(max_examples=20)
@given(seeds, st.floats(0.1, 10))
def test_epsilon_is_in_the_features_squared_unit(seed, scale):
    x, labels = drawn(seed)
    scaled = transrate(scale * x, labels, epsilon=1e-4 * scale**2)
    assert scaled.value == pytest.approx(value(x, labels), rel=1e-8)


@settings(max_examples=20)
@given(seeds)
def test_classes_of_equal_size_never_give_less_than_zero(seed):
    """The logarithm of the determinant is concave."""
    x, _ = drawn(seed, n=18)
    assert value(x, np.arange(18) % 3) >= -1e-10


def test_classes_of_unequal_size_may_give_less():
    x = np.array([[0.0]] * 9 + [[1.0]])
    assert value(x, np.array([0] * 9 + [1])) < 0


def test_classes_apart_give_more_than_classes_mixed():
    x, labels = drawn(0, n=60)
    apart = x + 10 * np.eye(4)[labels]
    mixed = np.random.default_rng(0).permutation(labels)
    assert value(apart, labels) > value(apart, mixed) + 1


def test_a_dead_channel_changes_nothing():
    x, labels = drawn(5)
    assert value(np.pad(x, ((0, 0), (0, 3))), labels) == value(x, labels)


def test_the_input_stays_as_it_was():
    x, labels = drawn(4)
    before = x.copy()
    transrate(x, labels)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "labels", "said"),
    [
        ([[1.0], [2.0]], [0, 0], "two classes"),
        ([[1.0], [1.0]], [0, 1], "must vary"),
        ([[1.0], [math.nan]], [0, 1], "finite"),
        ([[1e200], [-1e200]], [0, 1], "scale the features"),
    ],
)
def test_what_has_no_value_has_a_reason(x, labels, said):
    measured = transrate(np.array(x), np.array(labels))
    assert measured.value is None
    assert said in measured.reason


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_must_be_positive(epsilon):
    measured = transrate(*drawn(0), epsilon=epsilon)
    assert measured.value is None
    assert "epsilon > 0" in measured.reason
