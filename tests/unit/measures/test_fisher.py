"""The Fisher score against its definition, its laws, and the cases without an answer."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.measures.fisher import fisher

FEW = settings(max_examples=25, deadline=None, derandomize=True)


@st.composite
def datasets(draw, *, max_d=5):
    """Return features and labels with N - C > D + 1 and classes of at least two images."""
    n_classes, d = draw(st.integers(2, 4)), draw(st.integers(1, max_d))
    counts = draw(st.lists(st.integers(4, 9), min_size=n_classes, max_size=n_classes))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    labels = rng.permutation(np.repeat(np.arange(n_classes), counts))
    features = rng.normal(size=(labels.size, d)) + rng.normal(size=(n_classes, d))[labels] + 3
    return features, labels


def scatter(features, labels):
    """Return S_w and S_B by loops over images and classes."""
    n, d = features.shape
    m = sum(features) / n
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for c in sorted(set(labels.tolist())):
        rows = [x for x, y in zip(features, labels, strict=True) if y == c]
        m_c = sum(rows) / len(rows)
        for x in rows:
            within += np.outer(x - m_c, x - m_c) / n
        between += len(rows) / n * np.outer(m_c - m, m_c - m)
    return within, between


@FEW
@given(data=datasets(), ridge=st.sampled_from([0.0, 1e-4, 0.1]))
def test_value_is_that_of_the_definition(data, ridge):
    features, labels = data
    within, between = scatter(features, labels)
    d = len(within)
    inverse = np.linalg.inv(within + ridge * np.trace(within) / d * np.eye(d))
    expected = np.trace(inverse @ between) / len(set(labels.tolist()))
    measured = fisher(features, labels, ridge=ridge)
    assert measured.value == pytest.approx(expected, rel=1e-9)
    assert measured.settings["ridge"] == ridge


@FEW
@given(data=datasets())
def test_F_times_C_is_the_sum_of_the_generalised_eigenvalues(data):
    features, labels = data
    within, between = scatter(features, labels)
    l = scipy.linalg.eigh(between, within, eigvals_only=True)
    value = fisher(features, labels, ridge=0.0).value
    assert value is not None
    assert value * len(set(labels.tolist())) == pytest.approx(l.sum(), rel=1e-9)


@FEW
@given(data=datasets(), seed=st.integers(0, 2**20))
def test_no_invertible_affine_map_changes_the_score_without_a_ridge(data, seed):
    features, labels = data
    rng = np.random.default_rng(seed)
    d = features.shape[1]
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    mapped = features @ (rotation * rng.uniform(0.1, 10, size=d)) + rng.normal(size=d)
    assert fisher(mapped, labels, ridge=0.0).value == pytest.approx(
        fisher(features, labels, ridge=0.0).value, rel=1e-8
    )


@FEW
@given(data=datasets(), seed=st.integers(0, 2**20), ridge=st.sampled_from([0.0, 1e-4]))
def test_order_of_images_and_names_of_classes_do_not_matter(data, seed, ridge):
    features, labels = data
    order = np.random.default_rng(seed).permutation(labels.size)
    renamed = 7 * (labels.max() - labels) + 2  # leaves numbers out, which must not enter C
    value = fisher(features, labels, ridge=ridge).value
    assert fisher(features[order], labels[order], ridge=ridge).value == pytest.approx(value)
    assert fisher(features, renamed, ridge=ridge).value == pytest.approx(value)
    assert fisher(features, renamed, ridge=ridge).null == pytest.approx(
        fisher(features, labels, ridge=ridge).null
    )


def test_score_of_four_images_worked_out_by_hand():
    # Classes {0, 2} and {4, 6}: m_c = 1, 5 and m = 3; S_w = (1+1+1+1)/4 = 1,
    # S_B = (4 + 4)/2 = 4, so that F = 4/1/2 = 2. With r = 1: S_w = 1 + 1*1/1 = 2 and F = 1.
    features, labels = np.array([[0.0], [2.0], [4.0], [6.0]]), np.array([0, 0, 1, 1])
    assert fisher(features, labels, ridge=0.0).value == pytest.approx(2, rel=1e-14)
    assert fisher(features, labels, ridge=1.0).value == pytest.approx(1, rel=1e-14)


def test_formula_null_is_the_mean_over_uninformative_features():
    rng = np.random.default_rng(0)
    n, d, n_classes = 60, 6, 4
    labels = np.arange(n) % n_classes
    measured = [fisher(rng.normal(size=(n, d)), labels, ridge=0.0) for _ in range(600)]
    values = np.array([each.value for each in measured], dtype=float)
    standard_error = values.std() / np.sqrt(values.size)
    null = measured[0].null
    assert measured[0].settings["null_by"] == "formula"
    assert null is not None
    assert null == pytest.approx(6 * 3 / (49 * 4))
    assert abs(values.mean() - null) < 4 * standard_error
    assert 4 * standard_error < 0.1 * null  # else the line above could not fail


def test_permuted_null_agrees_with_shuffling_by_hand_and_with_the_formula():
    rng = np.random.default_rng(1)
    n, d, n_classes = 400, 8, 4
    labels = np.arange(n) % n_classes
    features = rng.normal(size=(n, d)) + 0.3 * rng.normal(size=(n_classes, d))[labels]
    measured = fisher(features, labels, ridge=1e-4)
    assert measured.settings["null_by"] == "permutation"
    shuffles = np.random.default_rng(int(measured.settings["seed"]))
    by_hand = [
        fisher(features, shuffles.permutation(labels), ridge=1e-4).value
        for _ in range(int(measured.settings["permutations"]))
    ]
    assert measured.null == pytest.approx(np.mean(np.array(by_hand, dtype=float)), rel=1e-9)
    assert measured.null == pytest.approx(fisher(features, labels, ridge=0.0).null, rel=0.3)
    assert measured.value is not None
    assert measured.null is not None
    assert measured.value > 3 * measured.null


def test_constant_columns_are_dropped_and_counted():
    rng = np.random.default_rng(2)
    features, labels = rng.normal(size=(30, 3)), np.arange(30) % 3
    padded = np.insert(features, [1, 1], [0.0, 7.0], axis=1)
    assert fisher(padded, labels, ridge=0.0).value == pytest.approx(
        fisher(features, labels, ridge=0.0).value, rel=1e-12
    )
    assert fisher(padded, labels).settings["dropped_columns"] == 2


RNG = np.random.default_rng(3)
TWO = np.arange(20) % 2


@pytest.mark.parametrize(
    ("features", "labels", "ridge", "reason"),
    [
        (RNG.normal(size=(20, 19)), TWO, 0.0, "N-C >= D"),
        (RNG.normal(size=(20, 2)) @ np.ones((2, 3)), TWO, 0.0, "cond(S_w)"),
        (RNG.normal(size=(20, 2)), np.zeros(20, int), 1e-4, "two classes"),
        (RNG.normal(size=(1, 2)), np.zeros(1, int), 1e-4, "n >= 2"),
        (np.full((20, 2), np.nan), TWO, 1e-4, "finite"),
        (RNG.normal(size=(20, 2)), TWO[:19], 1e-4, "one label per image"),
        (np.full((20, 2), 0.1), TWO, 1e-4, "constant"),
        (np.full((20, 2), 0.1) * (1 + TWO[:, None]), TWO, 1e-4, "must differ"),
        (RNG.normal(size=(5, 2)), np.arange(5), 1e-4, "must differ"),
        (RNG.normal(size=(20, 2)), TWO, -1.0, "ridge"),
    ],
)
def test_cases_without_an_answer_give_a_reason_in_one_line(features, labels, ridge, reason):
    measured = fisher(features, labels, ridge=ridge)
    assert measured.value is None
    assert measured.null is None
    assert reason in measured.reason
    assert "\n" not in measured.reason


def test_with_a_ridge_more_columns_than_images_have_a_score():
    measured = fisher(RNG.normal(size=(20, 50)), TWO)
    assert measured.value is not None
    assert measured.value > 0
    assert measured.null is not None
    assert 0.1 < measured.value / measured.null < 10


def test_input_is_not_changed():
    features, labels = RNG.normal(size=(20, 2)), TWO.copy()
    before = features.copy()
    fisher(features, labels)
    assert np.array_equal(features, before)
    assert np.array_equal(labels, TWO)
    assert features.flags.writeable


def test_single_precision_is_computed_in_double():
    features = RNG.normal(size=(20, 2)).astype(np.float32)
    double = features.astype(np.float64)
    assert fisher(features, TWO).value == fisher(double, TWO).value
