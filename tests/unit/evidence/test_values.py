"""The values of recipes: independent arithmetic, laws, and what they say where one knows better."""

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given

from nbtl_search.evidence.values import values_of
from nbtl_search.spec.verdict import Candidate

TOP1 = st.floats(1, 99, width=32)
RECIPES = st.dictionaries(
    st.integers(0, 20), st.lists(TOP1, min_size=1, max_size=5), min_size=1, max_size=8
)
IMAGES = st.integers(10, 5000)


def by_matrices(recipes, noise):
    """The posterior of a normal model in matrix form, with moments as the module states them."""
    runs = [(key, value) for key, values in recipes.items() for value in values]
    keys = list(recipes)
    means = np.array([np.mean(recipes[key]) for key in keys])
    variances = np.array([noise.variance(mean) for mean in means])
    counts = np.array([len(recipes[key]) for key in keys])
    moments = np.var(means, ddof=1) - np.mean(variances / counts)
    spread = max(moments, 0.25 * variances.mean())
    belongs = np.array([[key == other for other in keys] for key, _ in runs], float)
    errors = belongs @ variances
    precision = np.eye(len(keys)) / spread + belongs.T @ (belongs / errors[:, None])
    right = np.full(len(keys), means.mean() / spread) + belongs.T @ (
        np.array([value for _, value in runs]) / errors
    )
    covariance = np.linalg.inv(precision)
    return dict(zip(keys, covariance @ right, strict=True)), dict(
        zip(keys, np.diag(covariance), strict=True)
    )


@given(recipes=RECIPES, n_images=IMAGES)
def test_the_posterior_is_that_of_the_normal_model(recipes, n_images):
    found = values_of(recipes, n_images=n_images)
    if len(recipes) == 1:
        return
    means, variances = by_matrices(recipes, found.noise)
    for key, value in found.by.items():
        assert value.mean == pytest.approx(means[key], rel=1e-6, abs=1e-6)
        assert value.variance == pytest.approx(variances[key], rel=1e-6)
        assert value.n == len(recipes[key])


@given(recipes=RECIPES, n_images=IMAGES)
def test_a_value_lies_between_its_own_mean_and_that_of_all(recipes, n_images):
    found = values_of(recipes, n_images=n_images)
    centre = np.mean([np.mean(runs) for runs in recipes.values()])
    for key, value in found.by.items():
        low, high = sorted([float(np.mean(recipes[key])), float(centre)])
        assert low - 1e-6 <= value.mean <= high + 1e-6
        estimate = found.estimate(key)
        assert estimate.low < estimate.high


def test_one_lucky_run_does_not_beat_many_good_ones():
    recipes = {1: [74.0], 2: [72.0], 3: [80.0], 4: [79.0, 79.5, 78.5, 79.0]}
    assert max(recipes, key=lambda key: np.mean(recipes[key])) == 3
    assert values_of(recipes, n_images=100).ranked([1, 2, 3, 4])[0] == 4


def test_a_recipe_alone_is_its_mean_and_none_is_nothing():
    found = values_of({7: [70.0, 72.0], 9: []}, n_images=100)
    assert set(found.by) == {7}
    assert found.by[7].mean == 71.0
    assert found.most_telling({}) is None
    assert values_of({}, n_images=100).ranked([]) == []


def test_of_equals_the_first_in_order_leads():
    recipes = {0: [70.0] * 4, 1: [75.0] * 4, 2: [75.0] * 4}
    found = values_of(recipes, n_images=100)
    assert found.ranked([0, 1, 2]) == [1, 2, 0]
    assert found.ranked([2, 1, 0]) == [2, 1, 0]


def test_averages_change_nothing_for_the_recipes():
    recipes: dict[Candidate, list[float]] = {(0,): [70.0, 72.0], (3,): [73.0, 73.0]}
    averages: dict[Candidate, list[float]] = {(3, 0): [50.0, 90.0]}
    alone = values_of(recipes, n_images=100)
    both = values_of(recipes, others=averages, n_images=100)
    assert both.noise == alone.noise
    assert {key: both.by[key] for key in recipes} == dict(alone.by)
    assert both.by[3, 0].n == 2


def test_the_knowledge_gradient_is_the_expected_rise_of_the_best():
    """Against numerical integration over the outcome of one more run."""
    recipes = {1: [70.0, 74.0], 2: [71.0], 3: [60.0, 61.0]}
    found = values_of(recipes, n_images=100)
    expected = {}
    for key, value in found.by.items():
        others = max(other.mean for name, other in found.by.items() if name != key)
        best = max(other.mean for other in found.by.values())
        shift = value.variance / np.sqrt(value.variance + value.run_variance)
        rise, _ = scipy.integrate.quad(
            lambda z, v=value, s=shift, o=others, b=best: (max(v.mean + s * z, o) - b)
            * scipy.stats.norm.pdf(z),
            -8, 8, limit=200,
        )  # fmt: skip
        expected[key] = rise
    chosen = found.most_telling({})
    assert chosen is not None
    assert chosen[1] == pytest.approx(expected[chosen[0]], abs=1e-6)
    assert chosen[1] >= 0.9 * max(expected.values())
    assert chosen[0] == 2, "the second best, which has one run"


def test_of_two_rivals_that_tell_as_much_the_better_runs():
    found = values_of({1: [80.0], 2: [79.0], 3: [60.0]}, n_images=100)
    telling = found.most_telling({})
    assert telling is not None
    assert telling[0] == 1


def test_runs_under_way_make_a_recipe_less_telling():
    found = values_of({1: [80.0], 2: [79.0], 3: [50.0]}, n_images=100)
    none, one, both = (found.most_telling(each) for each in ({}, {1: 3}, {1: 3, 2: 3}))
    assert none is not None
    assert one is not None
    assert both is not None
    assert one[0] == 2
    assert both[1] < 0.5 * none[1]


def test_where_seeds_hardly_differ_there_is_little_to_learn():
    sure = values_of({1: [80.0] * 5, 2: [75.0] * 5, 3: [60.0] * 5}, n_images=5000)
    telling = sure.most_telling({})
    assert telling is not None
    assert telling[1] < 1e-3


def test_probabilities_of_a_pair_add_up_to_one():
    found = values_of({1: [80.0], 2: [79.0, 78.0]}, n_images=100)
    assert found.probability_better(1, 2) > 0.5
    total = found.probability_better(1, 2) + found.probability_better(2, 1)
    assert total == pytest.approx(1.0)


def test_the_gain_of_a_new_recipe_is_the_expected_rise_of_the_best():
    """Against numerical integration over the outcome of its one run."""
    found = values_of({1: [70.0, 74.0], 2: [71.0], 3: [60.0, 61.0]}, n_images=100)
    best = max(value.mean for value in found.by.values())
    run_variance = found.noise.variance(found.centre)
    shift = found.spread / np.sqrt(found.spread + run_variance)
    rise, _ = scipy.integrate.quad(
        lambda z: max(found.centre + shift * z - best, 0.0) * scipy.stats.norm.pdf(z),
        -8, 8, limit=200,
    )  # fmt: skip
    assert found.gain_of_a_new_one() == pytest.approx(rise, abs=1e-6)
