"""LogME against the literal Gaussian density of the labels, maximised by another method."""

import itertools

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.measures.logme import logme

FEW = settings(max_examples=15, deadline=None, derandomize=True)


def literal(features, target, log_a, log_b):
    """Return ln N(t; 0, I/b + F F^T/a) / N."""
    n = target.size
    covariance = np.exp(-log_b) * np.eye(n) + np.exp(-log_a) * features @ features.T
    _, log_det = np.linalg.slogdet(covariance)
    square = target @ np.linalg.solve(covariance, target)
    return -(log_det + square + n * np.log(2 * np.pi)) / 2 / n


def best(features, target):
    """Return the largest evidence over (log a, log b), from several starts."""

    def loss(logs):
        return -literal(features, target, *np.clip(logs, -25, 25))

    starts = itertools.product((-3, 3, 20), (2,))
    options = {"xatol": 1e-4, "fatol": 1e-10, "maxiter": 300}
    runs = [
        scipy.optimize.minimize(loss, start, method="Nelder-Mead", options=options)
        for start in starts
    ]
    return -min(run.fun for run in runs)


@st.composite
def datasets(draw, *, most=20):
    """Return features, of full rank or not, and labels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    n_classes, d = draw(st.integers(2, 3)), draw(st.integers(1, 4))
    n = draw(st.integers(12, most))
    labels = rng.permutation(np.arange(n) % n_classes)
    signal = draw(st.sampled_from([0.0, 0.5, 2.0]))
    features = rng.normal(size=(n, d)) + signal * rng.normal(size=(n_classes, d))[labels]
    return features, labels


def indicators(labels):
    return [(labels == c).astype(float) for c in sorted(set(labels.tolist()))]


@FEW
@given(data=datasets())
def test_value_is_the_maximum_of_the_literal_evidence(data):
    features, labels = data
    expected = np.mean([best(features, target) for target in indicators(labels)])
    assert logme(features, labels).value == pytest.approx(expected, abs=1e-6)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**20))
def test_value_is_that_maximum_with_as_many_columns_as_images_or_more(seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(8) % 2
    features = rng.normal(size=(8, 12)) + 2 * labels[:, None]
    expected = np.mean([best(features, target) for target in indicators(labels)])
    assert logme(features, labels).value == pytest.approx(expected, abs=1e-5)


@FEW
@given(data=datasets(), n_dead=st.integers(1, 30))
def test_dead_channels_change_neither_the_value_nor_the_literal_evidence(data, n_dead):
    features, labels = data
    padded = np.hstack([features, np.zeros((labels.size, n_dead))])
    target = indicators(labels)[0]
    assert literal(padded, target, 0.3, 1.2) == pytest.approx(
        literal(features, target, 0.3, 1.2), rel=1e-12
    )
    assert logme(padded, labels).value == pytest.approx(logme(features, labels).value, rel=1e-9)
    assert logme(padded, labels).settings["d"] == features.shape[1] + n_dead


@FEW
@given(data=datasets(most=40), seed=st.integers(0, 2**20))
def test_rotation_scale_order_and_names_do_not_matter(data, seed):
    features, labels = data
    rng = np.random.default_rng(seed)
    order, d = rng.permutation(labels.size), features.shape[1]
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    value = pytest.approx(logme(features, labels).value, rel=1e-9)
    assert logme(features @ rotation, labels).value == value
    assert logme(1000 * features, labels).value == value  # a takes the scale up
    assert logme(features[order], labels[order]).value == value
    assert logme(features, 7 * (labels.max() - labels) + 2).value == value


@FEW
@given(data=datasets(most=40))
def test_no_features_have_less_evidence_than_none(data):
    features, labels = data
    measured = logme(features, labels)
    assert measured.value is not None
    assert measured.null is not None
    assert measured.value >= measured.null - 1e-9
    share = np.bincount(labels) / labels.size
    assert measured.null == pytest.approx(-0.5 * np.mean(np.log(2 * np.pi * np.e * share)))


def test_one_column_worked_out_by_hand():
    # N = 2, F = (1, 1)^T, classes {1} and {2}: s^2 = 2, and t = (1, 0) has the coordinate
    # z^2 = 1/2 along F and 1/2 outside. With u = 1/b + 2/a and v = 1/b the covariance has the
    # eigenvalues u and v, so that ln p = -1/2 (ln u + ln v + 1/(2u) + 1/(2v)) - ln 2 pi. Free u
    # and v would both be 1/2, which u >= v allows as a -> infinity:
    # ln p/2 = -1/4 (2 ln 1/2 + 2) - 1/2 ln 2 pi = 1/2 ln 2 - 1/2 - 1/2 ln 2 pi.
    features, labels = np.ones((2, 1)), np.array([0, 1])
    expected = 0.5 * np.log(2) - 0.5 - 0.5 * np.log(2 * np.pi)
    assert logme(features, labels).value == pytest.approx(expected, rel=1e-9)


def test_intercept_of_unequal_classes_worked_out_by_hand():
    # N = 4, F = (1, 1, 1, 1)^T, classes of 1 and 3 images. Along F: z^2 = N_c^2/4, outside:
    # r = N_c - N_c^2/4 over 3 directions. With the eigenvalues u (once) and v (three times) the
    # best are u = z^2 and v = r/3 where u >= v, and ln p = -1/2 (ln u + 3 ln v + 4 + 4 ln 2 pi).
    # N_c = 3: z^2 = 9/4, r = 3/4, v = 1/4, allowed.
    # N_c = 1: z^2 = 1/4, r = 3/4, v = 1/4: u = v, the bound itself, allowed in the limit.
    by_class = [
        -(np.log(u) + 3 * np.log(v) + 4 + 4 * np.log(2 * np.pi)) / 8
        for u, v in ((9 / 4, 1 / 4), (1 / 4, 1 / 4))
    ]
    measured = logme(np.ones((4, 1)), np.array([0, 1, 1, 1]))
    assert measured.value == pytest.approx(np.mean(by_class), rel=1e-9)


RNG = np.random.default_rng(0)
TWO = np.arange(20) % 2


@pytest.mark.parametrize(
    ("features", "labels", "reason"),
    [
        (np.stack([TWO, 1 - TWO], axis=1).astype(float), TWO, "bounded"),
        (np.zeros((20, 3)), TWO, "zero"),
        (RNG.normal(size=(20, 2)), np.zeros(20, int), "two classes"),
        (np.full((20, 2), np.nan), TWO, "finite"),
        (RNG.normal(size=(20, 2)), TWO[:19], "one label per image"),
    ],
)
def test_cases_without_an_answer_give_a_reason_in_one_line(features, labels, reason):
    measured = logme(features, labels)
    assert measured.value is None
    assert reason in measured.reason
    assert "\n" not in measured.reason


def test_nearly_perfect_fit_has_a_large_finite_value():
    features = np.stack([TWO, 1 - TWO], axis=1) + 1e-4 * RNG.normal(size=(20, 2))
    measured = logme(features, TWO)
    assert measured.value is not None
    assert measured.value > 5


def test_perfect_fit_by_as_many_columns_as_images_has_a_finite_value():
    features = np.hstack([TWO[:, None] + 0.0, RNG.normal(size=(20, 30))])
    measured = logme(features, TWO)
    assert measured.value is not None
    assert np.isfinite(measured.value)


def test_input_is_not_changed():
    features, labels = RNG.normal(size=(20, 2)), TWO.copy()
    before = features.copy()
    assert logme(features, labels).value is not None
    assert np.array_equal(features, before)
    assert np.array_equal(labels, TWO)
