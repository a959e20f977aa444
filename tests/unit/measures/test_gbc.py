"""GBC against explicit Gaussians, and what must hold of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm, ortho_group

from nbtl_search.measures.gbc import gbc


def drawn(seed: int, *, n: int = 30, d: int = 4, c: int = 3):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(c), 2), rng.integers(c, size=n - 2 * c)])
    spread = rng.uniform(0.2, 2, size=(c, d))
    return spread[labels] * rng.standard_normal((n, d)) + rng.standard_normal((c, d))[
        labels
    ], labels


def value(*images, **settings):
    measured = gbc(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal(x, labels, floor):
    """The distance of two full Gaussians, with explicit inverses and determinants."""
    gaussians = []
    for c in sorted(set(labels.tolist())):
        rows = x[labels == c]
        mean = sum(rows) / len(rows)
        variance = sum((row - mean) ** 2 for row in rows) / len(rows)
        gaussians.append((mean, np.diag([max(v, floor) for v in variance])))
    total = 0.0
    for i, (m_i, s_i) in enumerate(gaussians):
        for j, (m_j, s_j) in enumerate(gaussians):
            if i != j:
                s = (s_i + s_j) / 2
                det, det_i, det_j = (np.linalg.det(of) for of in (s, s_i, s_j))
                distance = (m_i - m_j) @ np.linalg.inv(s) @ (m_i - m_j) / 8
                distance += 0.5 * math.log(det / math.sqrt(det_i * det_j))
                total += math.exp(-distance)
    return -total


def literal_principal(x, k):
    centred = x - x.mean(axis=0)
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    return centred @ rows[:k].T


seeds = st.integers(0, 10**6)


@settings(max_examples=20)
@given(seeds, st.sampled_from([1e-4, 0.5]))
def test_agrees_with_explicit_gaussians(seed, floor):
    x, labels = drawn(seed)
    measured = gbc(x, labels, variance_floor=floor)
    assert measured.value == pytest.approx(literal(x, labels, floor), rel=1e-9)
    assert measured.settings["reduced"] is False


@settings(max_examples=20)
@given(seeds, st.sampled_from([(30, 8), (9, 20)]))
def test_agrees_after_principal_components(seed, shape):
    x, labels = drawn(seed, n=shape[0], d=shape[1])
    measured = gbc(x, labels, n_components=3)
    assert measured.value == pytest.approx(literal(literal_principal(x, 3), labels, 1e-4), rel=1e-6)
    assert measured.settings["n_components"] == 3
    assert measured.settings["reduced"] is True


def test_is_the_overlap_of_the_densities():
    # Class 0 has mean 0 and variance 1, class 1 mean 3 and variance 4: the Bhattacharyya
    # coefficient is the integral of the square root of the densities' product.
    x, labels = np.array([[-1.0], [1.0], [1.0], [5.0]]), np.array([0, 0, 1, 1])
    overlap, _ = quad(lambda t: math.sqrt(norm.pdf(t, 0, 1) * norm.pdf(t, 3, 2)), -20, 30)
    assert value(x, labels) == pytest.approx(-2 * overlap, rel=1e-7)


@settings(max_examples=20)
@given(seeds, st.floats(-100, 100))
def test_order_names_and_translation_do_not_matter(seed, shift):
    x, labels = drawn(seed)
    rng = np.random.default_rng(seed)
    order, columns = rng.permutation(len(labels)), rng.permutation(x.shape[1])
    again = gbc(x[order][:, columns] + shift, np.array([8, 3, 5])[labels[order]])
    assert again.value == pytest.approx(value(x, labels), rel=1e-7)


@settings(max_examples=20)
@given(seeds, st.sampled_from([(30, 8), (9, 20)]))
def test_rotation_does_not_matter_once_reduced(seed, shape):
    """Principal components turn with the features; plain columns do not."""
    x, labels = drawn(seed, n=shape[0], d=shape[1])
    turned = x @ ortho_group.rvs(x.shape[1], random_state=seed)
    first = value(x, labels, n_components=3)
    assert value(turned, labels, n_components=3) == pytest.approx(first, rel=1e-6)


@settings(max_examples=20)
@given(seeds)
def test_lies_between_all_alike_and_all_apart(seed):
    assert -6 <= value(*drawn(seed)) <= 0


def test_classes_that_are_all_alike_give_the_least():
    x = np.tile([[0.0, 1.0], [2.0, 5.0]], (3, 1))
    assert value(x, np.array([0, 0, 1, 1, 2, 2])) == pytest.approx(-6.0, abs=1e-12)


def test_classes_far_apart_give_zero():
    x, labels = drawn(0)
    measured = gbc(x + 1e6 * np.eye(4)[labels], labels)
    assert measured.value == 0.0
    assert str(measured.value) == "0.0"


def test_more_components_than_images_still_have_a_value():
    """Directions beyond the images' span hold nothing, and the floor alone cancels out."""
    x, labels = drawn(1, n=10, d=100)
    measured = gbc(x, labels, n_components=64)
    assert measured.settings["n_components"] == 10
    # nine directions hold all that there is
    assert measured.value == pytest.approx(value(x, labels, n_components=9), rel=1e-9)


def test_a_class_of_one_image_has_the_floor_for_variance():
    x, labels = np.array([[0.0], [2.0], [4.0]]), np.array([0, 0, 1])
    middle = (1 + 1e-4) / 2
    by_hand = 3**2 / (8 * middle) + 0.5 * math.log(middle / math.sqrt(1e-4))
    assert value(x, labels) == pytest.approx(-2 * math.exp(-by_hand), rel=1e-12)


def test_a_dead_channel_changes_nothing():
    x, labels = drawn(5)
    assert value(np.pad(x, ((0, 0), (0, 3))), labels) == value(x, labels)


@pytest.mark.parametrize("n_components", [2, 64])
def test_the_input_stays_as_it_was(n_components):
    x, labels = drawn(4)
    before = x.copy()
    gbc(x, labels, n_components=n_components)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    ("x", "labels", "said"),
    [
        ([[1.0], [2.0]], [0, 0], "two classes"),
        ([[1.0], [1.0]], [0, 1], "must vary"),
        ([[1.0], [math.inf]], [0, 1], "finite"),
        ([[1e200], [-1e200], [0.0]], [0, 0, 1], "scale the features"),
    ],
)
def test_what_has_no_value_has_a_reason(x, labels, said):
    measured = gbc(np.array(x), np.array(labels))
    assert measured.value is None
    assert said in measured.reason


@pytest.mark.parametrize("wrong", [{"n_components": 0}, {"variance_floor": 0.0}])
def test_settings_must_be_positive(wrong):
    measured = gbc(*drawn(0), **wrong)
    assert measured.value is None
    assert "give positive numbers" in measured.reason
