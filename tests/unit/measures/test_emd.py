"""The earth mover's distance against a linear program, its laws, and cases without an answer."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtl_search.errors import DataError
from nbtl_search.measures import emd as module
from nbtl_search.measures.emd import emd, emd_to_rows, prototypes_of

FEW = settings(max_examples=25, deadline=None, derandomize=True)


def literal(points, weights, others, other_weights):
    """Return the least transport cost by a linear program over all flows."""
    n, k = len(points), len(others)
    costs = np.array([[np.sqrt(((p - o) ** 2).sum()) for o in others] for p in points])
    leaving = np.kron(np.eye(n), np.ones(k))
    arriving = np.kron(np.ones(n), np.eye(k))
    shares = np.concatenate([weights / weights.sum(), other_weights / other_weights.sum()])
    solved = scipy.optimize.linprog(
        costs.ravel(), A_eq=np.vstack([leaving, arriving]), b_eq=shares, method="highs"
    )
    assert solved.success
    return solved.fun


@st.composite
def sets(draw, *, n_sets):
    """Return sets of prototypes of the same width, each with its counts."""
    d = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    found = []
    for _ in range(n_sets):
        n = draw(st.integers(1, 6))
        found.append((rng.normal(size=(n, d)) + rng.normal(), rng.integers(1, 50, size=n)))
    return found


def values(target, source, **keywords):
    measured = emd(*target, *source, min_source_images=1, **keywords)
    assert [each.name for each in measured] == ["emd", "emd_similarity", "emd_scale_free"]
    return [each.value for each in measured]


@FEW
@given(pair=sets(n_sets=2), gamma=st.floats(0.001, 2))
def test_values_are_those_of_the_linear_program(pair, gamma):
    target, source = pair
    cost = literal(*source, *target)
    norms = [np.sqrt((p**2).sum()) for points, _ in pair for p in points]
    assert values(target, source, gamma=gamma) == pytest.approx(
        [cost, np.exp(-gamma * cost), cost / (sum(norms) / len(norms))], rel=1e-8, abs=1e-9
    )


@FEW
@given(three=sets(n_sets=3))
def test_it_is_symmetric_and_keeps_the_triangle_inequality(three):
    one, two, third = three
    assert values(one, two) == pytest.approx(values(two, one), rel=1e-9, abs=1e-12)
    assert values(one, third)[0] <= values(one, two)[0] + values(two, third)[0] + 1e-9


@FEW
@given(one=sets(n_sets=1), seed=st.integers(0, 2**20))
def test_it_is_zero_between_a_set_and_itself_in_any_order_and_unit_of_weight(one, seed):
    (points, counts) = one[0]
    order = np.random.default_rng(seed).permutation(len(points))
    assert values((points, counts), (points[order], 3 * counts[order])) == pytest.approx(
        [0, 1, 0], abs=1e-12
    )


@FEW
@given(pair=sets(n_sets=2), scale=st.floats(0.01, 100))
def test_scale_goes_into_the_raw_cost_and_not_into_the_scale_free_one(pair, scale):
    target, source = pair
    raw, _, free = values(target, source)
    scaled = values((scale * target[0], target[1]), (scale * source[0], source[1]))
    assert [scaled[0], scaled[2]] == pytest.approx([scale * raw, free], rel=1e-8)


def test_two_prototypes_worked_out_by_hand():
    # Source: 1/4 at 0 and 3/4 at 4; target: all at 1. Cost 1/4 * 1 + 3/4 * 3 = 5/2. The norms
    # are 0, 4 and 1, their mean 5/3, so that the scale-free cost is 3/2.
    measured = emd(
        np.array([[1.0]]), np.array([10]), np.array([[0.0], [4.0]]), np.array([200, 600])
    )
    assert [each.value for each in measured] == pytest.approx([2.5, np.exp(-0.025), 1.5])
    assert measured[0].settings["gamma"] == 0.01
    assert measured[0].settings["min_source_images"] == 200


def test_source_classes_with_few_images_are_left_out_and_target_classes_are_not():
    source, counts = np.array([[0.0], [4.0], [100.0]]), np.array([200, 600, 199])
    measured = emd(np.array([[1.0]]), np.array([1]), source, counts)
    assert measured[0].value == pytest.approx(2.5)
    assert measured[0].settings["n_source_classes"] == 2


def test_prototypes_are_the_plain_means_and_counts_of_the_classes_present():
    features = np.array([[1.0, 0], [3, 0], [5, 7]])
    prototypes, counts = prototypes_of(features, np.array([4, 4, 1]))
    assert np.array_equal(prototypes, [[5, 7], [2, 0]])
    assert np.array_equal(counts, [1, 2])
    with pytest.raises(DataError, match="two classes"):
        prototypes_of(features, np.zeros(3, int))


@FEW
@given(pair=sets(n_sets=2))
def test_distance_to_rows_is_that_on_the_unit_sphere_with_equal_weights(pair):
    (points, counts), (rows, _) = pair
    expected = literal(
        points / np.linalg.norm(points, axis=1, keepdims=True),
        counts,
        rows / np.linalg.norm(rows, axis=1, keepdims=True),
        np.ones(len(rows)),
    )
    measured = emd_to_rows(points, counts, rows)
    assert measured.name == "emd_classifier_rows"
    assert measured.value == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert emd_to_rows(5 * points, counts, 0.1 * rows).value == pytest.approx(
        measured.value, rel=1e-8, abs=1e-9
    )
    assert "not EMD between images" in str(measured.settings["measure"])


POINTS, COUNTS = np.ones((2, 3)), np.array([5, 5])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((POINTS, COUNTS, POINTS, np.array([199, 3])), "needs 200 images, the largest has 199"),
        ((POINTS, np.array([0, 0]), POINTS, 100 * COUNTS), "target class needs 1 images"),
        ((POINTS, COUNTS, np.ones((2, 4)), 100 * COUNTS), "same D, got 4 and 3"),
        ((POINTS, COUNTS[:1], POINTS, 100 * COUNTS), "one count per class"),
        ((POINTS * np.nan, COUNTS, POINTS, 100 * COUNTS), "finite"),
    ],
)
def test_cases_without_an_answer_give_a_reason_in_one_line(arguments, reason):
    for measured in emd(*arguments):
        assert measured.value is None
        assert reason in measured.reason
        assert "\n" not in measured.reason


def test_a_solver_that_does_not_finish_gives_a_reason(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIVOTS", 1)
    rng = np.random.default_rng(0)
    measured = emd(
        rng.normal(size=(30, 3)),
        rng.integers(1, 50, size=30),
        rng.normal(size=(40, 3)),
        rng.integers(200, 500, size=40),
    )
    assert [each.value for each in measured] == [None, None, None]
    assert "must converge" in measured[0].reason
    assert "\n" not in measured[0].reason


def test_prototypes_of_norm_zero_have_no_scale():
    raw, similarity, free = emd(0 * POINTS, COUNTS, 0 * POINTS, 100 * COUNTS)
    assert (raw.value, similarity.value, free.value) == (0, 1, None)
    assert "norm" in free.reason
    assert "norm" in emd_to_rows(0 * POINTS, COUNTS, POINTS).reason
    assert "norm" in emd_to_rows(POINTS, COUNTS, 0 * POINTS).reason


def test_a_negative_gamma_gives_a_reason():
    assert "gamma" in emd(POINTS, COUNTS, POINTS, 100 * COUNTS, gamma=-1.0)[1].reason


def test_input_is_not_changed():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(3, 2)), np.array([1, 2, 3]), rng.normal(size=(2, 2)), COUNTS.copy()]
    before = [array.copy() for array in arrays]
    emd(*arrays, min_source_images=1)
    emd_to_rows(*arrays[:3])
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
