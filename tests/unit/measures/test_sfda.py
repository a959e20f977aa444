"""SFDA against its description, image by image, and what must hold of it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from nbtl_search.measures.sfda import sfda


def drawn(seed: int, *, n: int = 24, d: int = 4, c: int = 3, apart: float = 1.0):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), rng.integers(c, size=n - c)])
    return rng.standard_normal((n, d)) + apart * rng.standard_normal((c, d))[labels], labels


def of_class(x, labels, c):
    return [row for row, y in zip(x, labels, strict=True) if y == c]


def value(*images, **settings):
    measured = sfda(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal_posteriors(x, labels, shrinkage):
    """P(y_i | x_i) of Gaussian classes with one shrunk covariance, by explicit inverse."""
    n, d = x.shape
    names = sorted(set(labels.tolist()))
    means = {c: sum(of_class(x, labels, c)) / len(of_class(x, labels, c)) for c in names}
    within = np.zeros((d, d))
    for row, y in zip(x, labels, strict=True):
        within += np.outer(row - means[y], row - means[y]) / n
    if shrinkage is None:
        shrinkage = max(math.exp(-5 * np.linalg.eigvalsh(within)[-1]), 1e-10)
    sigma = (1 - shrinkage) * within + shrinkage * np.trace(within) / d * np.eye(d)
    inverse = np.linalg.inv(sigma)
    posteriors = []
    for row, y in zip(x, labels, strict=True):
        logs = {
            c: math.log(len(of_class(x, labels, c)) / n)
            - (row - means[c]) @ inverse @ (row - means[c]) / 2
            for c in names
        }
        posteriors.append(1 / sum(math.exp(logs[c] - logs[y]) for c in names))
    return posteriors, means, shrinkage


def literal(x, labels):
    posteriors, means, shrinkage = literal_posteriors(x, labels, None)
    mixed = []
    for row, y, p in zip(x, labels, posteriors, strict=True):
        others = [mean for c, mean in means.items() if c != y]
        mixed.append(p * row + (1 - p) * sum(others) / len(others))
    posteriors, _, _ = literal_posteriors(np.array(mixed), labels, shrinkage)
    return sum(posteriors) / len(posteriors)


seeds = st.integers(0, 10**6)


@settings(max_examples=25)
@given(seeds, st.sampled_from([0.05, 0.5, 2.0]), st.floats(0, 3))
def test_agrees_with_its_description(seed, scale, apart):
    x, labels = drawn(seed, apart=apart)
    assert value(scale * x, labels) == pytest.approx(literal(scale * x, labels), rel=1e-8)


def test_first_posterior_is_that_of_a_discriminant_analysis():
    """An analysis by another hand: scikit-learn's, with the same shrinkage and priors."""
    x, labels = drawn(2, apart=2.0)
    x = 0.4 * x
    posteriors, _, shrinkage = literal_posteriors(x, labels, None)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    probabilities = theirs.fit(x, labels).predict_proba(x)
    assert 1e-3 < shrinkage < 0.9
    # it shrinks class by class towards each one's own mean variance; with priors N_c/N the sum is
    # the same
    np.testing.assert_allclose(probabilities[np.arange(len(x)), labels], posteriors, rtol=1e-6)


@settings(max_examples=20)
@given(seeds, st.floats(-100, 100))
def test_order_names_rotation_and_translation_do_not_matter(seed, shift):
    x, labels = drawn(seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    moved = x[order] @ ortho_group.rvs(4, random_state=seed) + shift
    again = sfda(moved, np.array([8, 3, 5])[labels[order]])
    assert again.value == pytest.approx(value(x, labels), rel=1e-6)


@settings(max_examples=20)
@given(seeds, st.floats(0, 5))
def test_is_a_probability(seed, apart):
    assert 0 < value(*drawn(seed, apart=apart)) <= 1


def test_classes_apart_are_near_one_and_mixed_ones_are_not():
    x, labels = drawn(0, n=300)
    assert value(x + 50 * np.eye(4)[labels], labels) > 0.999
    mixed = np.random.default_rng(1).permutation(labels)
    assert value(x + 50 * np.eye(4)[labels], mixed) < 0.8


@settings(max_examples=10)
@given(seeds)
def test_classes_of_one_place_give_their_prior(seed):
    """Where both means coincide the posterior is the prior, mixing moves none of them apart."""
    rows = np.random.default_rng(seed).standard_normal((8, 3))
    x = np.concatenate([rows, -rows, rows, -rows])
    measured = sfda(x, np.repeat([0, 1], 16))
    assert measured.value == pytest.approx(0.5, abs=1e-9)


def test_small_features_are_shrunk_and_large_ones_hardly():
    x, labels = drawn(3)
    assert sfda(1e-4 * x, labels).settings["shrinkage"] == pytest.approx(1, abs=1e-6)
    assert sfda(100 * x, labels).settings["shrinkage"] == 1e-10


def test_fewer_images_than_features_are_refused_once_any_labels_would_give_one():
    x, labels = drawn(4, n=12, d=40)
    for of in (labels, np.random.default_rng(0).permutation(labels)):
        measured = sfda(10 * x, of)
        assert measured.value is None
        assert "got n = 12, C = 3, d = 40" in measured.reason
    x, labels = drawn(4, n=12, d=10, apart=0.0)
    assert value(0.01 * x, labels) == pytest.approx(literal(0.01 * x, labels), rel=1e-8)


def test_a_class_of_one_image_adds_nothing_within():
    x = np.array([[0.0], [2.0], [7.0]])
    labels = np.array([0, 0, 1])
    assert value(x, labels) == pytest.approx(literal(x, labels), rel=1e-9)


def test_a_dead_channel_changes_nothing():
    x, labels = drawn(5)
    assert value(np.pad(x, ((0, 0), (0, 3))), labels) == value(x, labels)


def test_the_input_stays_as_it_was():
    x, labels = drawn(6)
    before = x.copy()
    first = sfda(x, labels)
    np.testing.assert_array_equal(x, before)
    assert sfda(x, labels) == first


@pytest.mark.parametrize(
    ("x", "labels", "said"),
    [
        ([[1.0], [2.0]], [0, 0], "two classes"),
        ([[1.0], [1.0]], [0, 1], "must vary"),
        ([[1.0], [math.nan]], [0, 1], "finite"),
        ([[1.0], [2.0], [1.0]], [0, 1, 0], "differ within their classes"),
        ([[1e200], [-1e200], [0.0]], [0, 0, 1], "scale the features"),
    ],
)
def test_what_has_no_value_has_a_reason(x, labels, said):
    measured = sfda(np.array(x), np.array(labels))
    assert measured.value is None
    assert said in measured.reason
