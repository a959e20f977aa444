"""The two H-scores against their definitions, their laws, and the cases without an answer."""

import itertools

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from nbtl_search.measures.fisher import fisher
from nbtl_search.measures.hscore import hscore, hscore_regularised

FEW = settings(max_examples=25, deadline=None, derandomize=True)
BOTH = pytest.mark.parametrize("measure", [hscore, hscore_regularised])


@st.composite
def datasets(draw):
    """Return features and labels with N - C > D."""
    n_classes, d = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    counts = draw(st.lists(st.integers(4, 9), min_size=n_classes, max_size=n_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    labels = rng.permutation(np.repeat(np.arange(n_classes), counts))
    features = rng.normal(size=(labels.size, d)) + rng.normal(size=(n_classes, d))[labels] + 3
    return features, labels


def covariances(features, labels):
    """Return cov(f) and cov(E[f|y]) by a loop: the latter gives each image its class's mean."""
    n, d = features.shape
    m = sum(features) / n
    total, between = np.zeros((d, d)), np.zeros((d, d))
    for x, y in zip(features, labels, strict=True):
        same = [other for other, z in zip(features, labels, strict=True) if z == y]
        m_c = sum(same) / len(same)
        total += np.outer(x - m, x - m) / n
        between += np.outer(m_c - m, m_c - m) / n
    return total, between


@FEW
@given(data=datasets())
def test_h_score_is_that_of_the_definition(data):
    total, between = covariances(*data)
    expected = np.trace(np.linalg.pinv(total) @ between)
    assert hscore(*data).value == pytest.approx(expected, rel=1e-9)


@FEW
@given(data=datasets())
def test_regularised_h_score_is_that_of_the_definition(data):
    _, between = covariances(*data)
    fitted = LedoitWolf().fit(data[0])
    s = fitted.shrinkage_
    expected = (1 - s) * np.trace(np.linalg.inv(fitted.covariance_) @ between)
    measured = hscore_regularised(*data)
    assert measured.value == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert measured.settings["shrinkage"] == pytest.approx(s, rel=1e-12)


@FEW
@given(data=datasets())
def test_H_and_F_are_functions_of_the_same_eigenvalues(data):
    features, labels = data
    total, between = covariances(features, labels)
    l = scipy.linalg.eigh(between, total - between, eigvals_only=True)
    assert hscore(features, labels).value == pytest.approx((l / (1 + l)).sum(), rel=1e-9)
    F = fisher(features, labels, ridge=0.0).value
    assert F is not None
    assert F * len(set(labels.tolist())) == pytest.approx(l.sum(), rel=1e-9)


@FEW
@given(data=datasets())
def test_h_score_is_between_zero_and_the_classes_but_one(data):
    measured = hscore(*data)
    per_class = float(measured.settings["per_class"])
    assert 0 <= per_class <= 1
    assert measured.value == pytest.approx(per_class * (len(set(data[1].tolist())) - 1))


@BOTH
@FEW
@given(data=datasets(), seed=st.integers(0, 2**20))
def test_order_of_images_names_of_classes_and_rotation_do_not_matter(measure, data, seed):
    features, labels = data
    rng = np.random.default_rng(seed)
    order, d = rng.permutation(labels.size), features.shape[1]
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    value = pytest.approx(measure(features, labels).value, rel=1e-8, abs=1e-12)
    assert measure(features[order], labels[order]).value == value
    assert measure(features, 7 * (labels.max() - labels) + 2).value == value
    assert measure(2 * features @ rotation + 1, labels).value == value


@BOTH
def test_null_is_the_mean_over_all_permutations_of_the_labels(measure):
    features = np.random.default_rng(0).normal(size=(7, 2)) ** 3
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    arrangements = sorted(set(itertools.permutations(labels.tolist())))
    values = [measure(features, np.array(each)).value for each in arrangements]
    assert len(values) == 35
    assert measure(features, labels).null == pytest.approx(np.mean(values), rel=1e-10)


def test_scores_of_four_images_worked_out_by_hand():
    # Classes {0, 2} and {4, 6}: m = 3, cov(f) = (9 + 1 + 1 + 9)/4 = 5 and cov(E[f|y]) = 4, so
    # that H = 4/5. With D = 1 the target tr(cov)/D I of the shrinkage is cov(f) itself: Sigma_s
    # is 5 whatever s is. Ledoit and Wolf's s = min(beta, delta)/delta is 0 for delta = 0.
    features, labels = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    assert hscore(features, labels).value == pytest.approx(0.8, rel=1e-14)
    assert hscore(features, labels).null == pytest.approx(1 / 3, rel=1e-14)
    assert hscore_regularised(features, labels).value == pytest.approx(0.8, rel=1e-14)


def test_regularised_score_in_two_dimensions_worked_out_by_hand():
    # x = (+-2, 0), (0, +-1): m = 0, cov = diag(4 + 4, 1 + 1)/4 = diag(2, 1/2), mu = 5/4.
    # d^2 = ||cov - mu I||^2/D = (9/16 + 9/16)/2 = 9/16.
    # b^2 = (1/N^2) sum_i ||x_i x_i^T - cov||^2/D:  (2, 0): (4-2)^2 + 1/4 = 17/4 and
    #   (0, 1): 4 + (1-1/2)^2 = 17/4, so that b^2 = (4/16) (17/4)/2 = 17/32.
    # s = b^2/d^2 = (17/32)/(9/16) = 17/18.
    # Sigma_s = 1/18 diag(2, 1/2) + 17/18 5/4 I = diag(93/72, 87/72).
    # Classes {(2, 0), (0, 1)} and {(-2, 0), (0, -1)} have the means +-(1, 1/2), so that
    # cov(E[f|y]) has the diagonal (1, 1/4): H = 1/18 (72/93 + 18/87).
    features = np.array([[2.0, 0], [0, 1], [-2, 0], [0, -1]])
    measured = hscore_regularised(features, np.array([0, 0, 1, 1]))
    assert measured.settings["shrinkage"] == pytest.approx(17 / 18, rel=1e-12)
    assert measured.value == pytest.approx((72 / 93 + 18 / 87) / 18, rel=1e-12)


RNG = np.random.default_rng(1)
TWO = np.arange(20) % 2


@pytest.mark.parametrize(
    ("features", "labels", "reason"),
    [
        (RNG.normal(size=(20, 19)), TWO, "N-C >= D"),
        (RNG.normal(size=(20, 2)) @ np.ones((2, 3)), TWO, "cond(cov f)"),
    ],
)
def test_singular_covariances_give_a_reason_and_only_the_regularised_a_value(
    features, labels, reason
):
    measured = hscore(features, labels)
    assert measured.value is None
    assert reason in measured.reason
    regularised = hscore_regularised(features, labels)
    assert regularised.value is not None
    assert regularised.value > 0


@BOTH
@pytest.mark.parametrize(
    ("features", "labels", "reason"),
    [
        (RNG.normal(size=(20, 2)), np.zeros(20, int), "two classes"),
        (np.full((20, 2), np.inf), TWO, "finite"),
        (RNG.normal(size=(20, 2)), TWO[:19], "one label per image"),
        (np.zeros((20, 2)), TWO, "constant"),
    ],
)
def test_cases_without_an_answer_give_a_reason_in_one_line(measure, features, labels, reason):
    measured = measure(features, labels)
    assert measured.value is None
    assert reason in measured.reason
    assert "\n" not in measured.reason


@BOTH
def test_input_is_not_changed(measure):
    features, labels = RNG.normal(size=(20, 2)), TWO.copy()
    before = features.copy()
    assert measure(features, labels).value is not None
    assert np.array_equal(features, before)
    assert np.array_equal(labels, TWO)


@BOTH
def test_dead_channels_do_not_matter(measure):
    features = RNG.normal(size=(20, 2))
    padded = np.insert(features, [1, 1], [0.0, 7.0], axis=1)
    assert measure(padded, TWO).value == pytest.approx(measure(features, TWO).value, rel=1e-12)
    assert measure(padded, TWO).settings["dropped_columns"] == 2
