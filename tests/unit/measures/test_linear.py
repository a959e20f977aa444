"""Accuracy on fixed features: its limits, its determinism, and what it must not look at."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax
from scipy.stats import ortho_group

from nbtl_search.measures import linear
from nbtl_search.measures.linear import fit_classifier, fixed_accuracy


def drawn(seed: int, *, n: int = 60, d: int = 5, c: int = 3, apart: float = 1.0):
    """Training and validation images of the same classes."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.standard_normal((c, d))
    labels = [np.concatenate([np.arange(c), rng.integers(c, size=n - c)]) for _ in range(2)]
    features = [rng.standard_normal((n, d)) + centres[y] for y in labels]
    return features[0], labels[0], features[1], labels[1]


def value(*images, **settings):
    measured = fixed_accuracy(*images, **settings)
    assert measured.value is not None, measured.reason
    return measured.value


def literal(images, strength):
    """Percent right, of the minimum of the stated objective found by another optimiser."""
    x, y, x_val, y_val = images
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, x_val, names = (x - mean) / std, (x_val - mean) / std, np.unique(y)
    index = np.searchsorted(names, y)

    def objective(flat):
        w, b = flat[: -len(names)].reshape(len(names), -1), flat[-len(names) :]
        right = log_softmax(x @ w.T + b, axis=1)[np.arange(len(y)), index]
        return -right.mean() + strength / 2 * (w**2).sum()

    flat = minimize(objective, np.zeros(len(names) * (x.shape[1] + 1)), method="BFGS").x
    w, b = flat[: -len(names)].reshape(len(names), -1), flat[-len(names) :]
    return 100 * float(np.mean(names[(x_val @ w.T + b).argmax(axis=1)] == y_val))


seeds = st.integers(0, 10**6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_agrees_with_the_stated_objective(seed, strength):
    images = drawn(seed)
    measured = fixed_accuracy(*images, strengths=(strength,))
    # one image of the 60 may lie on the border
    assert measured.value == pytest.approx(literal(images, strength), abs=100 / 60 + 1e-9)
    assert measured.settings["strength"] == strength


def test_separable_classes_are_told_apart():
    measured = fixed_accuracy(*drawn(0, apart=30.0))
    assert measured.value == 100
    assert measured.settings["converged"] is True


def test_noise_is_near_chance():
    x, y, x_val, y_val = drawn(1, n=1200, d=20, c=4, apart=0.0)
    measured = fixed_accuracy(x, y, x_val, y_val)
    assert measured.value == pytest.approx(25, abs=5)  # four standard errors
    assert measured.null == pytest.approx(100 * np.bincount(y_val).max() / 1200)


@settings(max_examples=5)
@given(seeds)
def test_is_the_same_again_whatever_the_order(seed):
    x, y, x_val, y_val = drawn(seed)
    first = fixed_accuracy(x, y, x_val, y_val, seed=seed)
    order = np.random.default_rng(seed).permutation(len(y))
    assert fixed_accuracy(x, y, x_val, y_val, seed=seed) == first
    assert fixed_accuracy(x[order], y[order], x_val[order], y_val[order], seed=seed) == first


@settings(max_examples=5)
@given(seeds)
def test_names_of_classes_and_units_of_features_do_not_matter(seed):
    x, y, x_val, y_val = drawn(seed, apart=3.0)
    names = np.array([8, 3, 5])
    units = np.array([1e-3, 1.0, 10.0, 1e4, 7.0])
    again = fixed_accuracy(x * units + 5, names[y], x_val * units + 5, names[y_val])
    first = fixed_accuracy(x, y, x_val, y_val)
    assert again.value == pytest.approx(first.value, abs=100 / 60 + 1e-9)
    assert again.settings["strength"] == first.settings["strength"]


def test_validation_does_not_choose_the_strength():
    x, y, x_val, y_val = drawn(2, n=80, d=30, apart=0.5)
    rng = np.random.default_rng(0)
    first = fixed_accuracy(x, y, x_val, y_val)
    others = [
        fixed_accuracy(x, y, x_val, rng.permutation(y_val)),
        fixed_accuracy(x, y, rng.standard_normal(x_val.shape), y_val),
    ]
    assert [other.settings["strength"] for other in others] == [first.settings["strength"]] * 2
    assert others[0].value != first.value


@pytest.mark.parametrize("better", [1.0, 1e-9])
def test_held_out_images_choose_the_strength(better):
    """With half of the labels wrong the strong end is needed; with none, the weak one."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((900, 60))
    y = (x[:, 0] > 0).astype(np.int64) + 2 * (x[:, 1] > 0)
    noisy = better == 1.0
    y = np.where(noisy & (rng.random(900) < 0.5), rng.integers(4, size=900), y)
    images = x[:400], y[:400], x[400:], y[400:]
    ends = (1.0, 1e-9) if noisy else (100.0, 1e-9)
    taken = {s: value(*images, strengths=(s,)) for s in ends}
    chosen = fixed_accuracy(*images, strengths=ends)
    assert max(taken, key=taken.__getitem__) == better
    assert chosen.settings["strength"] == better
    assert chosen.value == taken[better]


def test_a_fifth_of_each_class_is_held_out():
    y = np.repeat([0, 1, 2, 3], [1, 2, 10, 24])
    held_out = linear._held_out(y)
    assert [int(held_out[y == c].sum()) for c in range(4)] == [0, 1, 2, 4]


def test_classes_of_one_image_hold_nothing_out():
    x = np.eye(3)
    measured = fixed_accuracy(x, np.array([0, 1, 2]), x, np.array([0, 1, 2]))
    assert measured.value == 100
    assert measured.settings["n_held_out"] == 0
    assert measured.settings["strength"] == 0.1


def test_validation_images_of_unseen_classes_are_mistaken():
    x, y, x_val, y_val = drawn(0, apart=30.0)
    x_val, y_val = np.concatenate([x_val, x_val[:20]]), np.concatenate([y_val, np.full(20, 9)])
    measured = fixed_accuracy(x, y, x_val, y_val)
    assert measured.value == pytest.approx(100 * 60 / 80)
    assert measured.settings["n_val_of_unseen_classes"] == 20


def test_classes_absent_from_validation_do_no_harm():
    x, y, x_val, y_val = drawn(0, apart=30.0)
    measured = fixed_accuracy(x, y, x_val[y_val == 1], y_val[y_val == 1])
    assert measured.value == 100
    assert measured.null == 100


def test_what_did_not_converge_is_said(monkeypatch):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 2)
    measured = fixed_accuracy(*drawn(4), strengths=(1e-6,))
    assert measured.value is not None
    assert measured.settings["converged"] is False


def test_dead_channels_and_rotation_are_harmless():
    x, y, x_val, y_val = drawn(0, apart=30.0)
    turn = ortho_group.rvs(5, random_state=0)
    dead = ((0, 0), (0, 3))
    measured = fixed_accuracy(np.pad(x @ turn, dead), y, np.pad(x_val @ turn, dead), y_val)
    assert measured.value == 100


def test_the_input_stays_as_it_was():
    images = drawn(5)
    before = [array.copy() for array in images]
    fixed_accuracy(*images)
    for array, was in zip(images, before, strict=True):
        np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_labels": np.zeros(60, dtype=np.int64)}, "two classes"),
        ({"train_features": np.full((60, 5), math.nan)}, "finite"),
        ({"train_features": np.full((60, 5), 1e200)}, "1e100"),
        ({"val_features": np.full((60, 5), math.inf)}, "validation features must be finite"),
        ({"val_features": np.zeros((60, 4))}, "same layer"),
        ({"val_labels": np.zeros(3, dtype=np.int64)}, "same layer"),
        ({"strengths": ()}, "strengths must be positive"),
        ({"strengths": (1.0, 0.0)}, "strengths must be positive"),
    ],
)
def test_what_has_no_value_has_a_reason(change, said):
    names = ("train_features", "train_labels", "val_features", "val_labels")
    measured = fixed_accuracy(**(dict(zip(names, drawn(0), strict=True)) | change))
    assert measured.value is None
    assert said in measured.reason


def test_constant_features_give_chance():
    """They say nothing: the intercept alone answers, with the largest class of training."""
    y = np.repeat([0, 1], [30, 20])
    measured = fixed_accuracy(np.ones((50, 3)), y, np.ones((50, 3)), y)
    assert measured.value == 60
    assert measured.null == 60


def objective_slope(x, y, classifier):
    """The gradient of the objective on standardised features, at a classifier of raw ones."""
    scale, names = x.std(axis=0), np.unique(y)
    standardised = (x - x.mean(axis=0)) / scale
    weight = classifier.weight[names] * scale
    logits = x @ classifier.weight[names].T + classifier.bias[names]
    residuals = np.exp(log_softmax(logits, axis=1)) - (y[:, None] == names)
    by_weight = residuals.T @ standardised / len(y) + classifier.strength * weight
    return np.concatenate([by_weight.ravel(), residuals.mean(axis=0)])


@pytest.mark.parametrize("c", [3, 5])
def test_the_classifier_minimises_the_stated_objective(c):
    x, y, _, _ = drawn(0, c=c)
    x = x * np.array([1, 10, 0.1, 3, 1]) + 5
    classifier = fit_classifier(x, y, n_classes=c)
    assert classifier.strength in linear.STRENGTHS
    assert np.abs(objective_slope(x, y, classifier)).max() < 1e-3


def test_of_two_classes_the_logits_differ_as_the_regression_says():
    x, y, x_val, y_val = drawn(3, c=2)
    classifier = fit_classifier(x, y, n_classes=2, strengths=(0.1,))
    right = (x_val @ classifier.weight.T + classifier.bias).argmax(axis=1) == y_val
    expected = value(x, y, x_val, y_val, strengths=(0.1,))
    assert 100 * right.mean() == pytest.approx(expected)
    assert np.allclose(classifier.weight.sum(axis=0), 0)


def test_a_class_without_images_is_the_least_likely():
    x, y, x_val, _ = drawn(4, c=3)
    classifier = fit_classifier(x, np.array([0, 2, 3])[y], n_classes=5, strengths=(0.1,))
    found = (x_val @ classifier.weight.T + classifier.bias).argmax(axis=1)
    plain = fit_classifier(x, y, n_classes=3, strengths=(0.1,))
    expected = np.array([0, 2, 3])[(x_val @ plain.weight.T + plain.bias).argmax(axis=1)]
    assert found.tolist() == expected.tolist()
    assert not classifier.weight[[1, 4]].any()


def test_features_that_cannot_be_fitted_give_the_reason():
    reason = fit_classifier(np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), n_classes=2)
    assert isinstance(reason, str)
    assert "finite" in reason
