"""Accuracy on fixed features: a linear classifier, trained on what the frozen network gives.

Plested, Shen and Gedeon 2021, arXiv 2107.08585, section 4.1, compare it with the accuracy of
training from random initialisation.
"""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from nbtl_search.measures.classes import Classes, classes_of
from nbtl_search.spec.diagnosis import Measured

# Real features (MobileNetV2, 160 px; 10 textures, 5 flowers, 25 objects; 140 to 690 images, mean
# of 4 splits) are best between 0.3 and 0.001, where the accuracies differ by at most 1.3 points;
# 10 costs six to eight, which a held-out set of fifty images may not show. So nothing above 1.
STRENGTHS = (1.0, 0.3, 0.1, 0.01, 0.001)
DEFAULT_STRENGTH = 0.1
HELD_OUT_PART = 5
MAX_ITERATIONS = 1000
PROTOCOL = "multinomial logistic regression, standardised features, L2 by a held-out fifth"


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """A classifier of features as they are: `features @ weight.T + bias` are its logits."""

    weight: Float64[np.ndarray, "classes d"]
    bias: Float64[np.ndarray, " classes"]
    strength: float
    """Of L2, as it was chosen."""


def fit_classifier(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    n_classes: int,
    seed: int = 0,
    strengths: tuple[float, ...] = STRENGTHS,
) -> LinearClassifier | str:
    """Return the classifier that `fixed_accuracy` judges, or why there is none.

    A class without images has a weight of zero, and the least bias of all.
    """
    train = classes_of(features, labels, drop_constant=False)
    if isinstance(train, str):
        return train
    fitted = _fitted_to(train, seed=seed, strengths=strengths)
    scaled, bias = fitted.model.coef_, fitted.model.intercept_
    if len(scaled) == 1:  # of two classes the library keeps the difference
        scaled, bias = np.concatenate([-scaled, scaled]) / 2, np.concatenate([-bias, bias]) / 2
    weight = scaled / fitted.scaler.scale_
    bias = bias - weight @ fitted.scaler.mean_
    found = np.unique(labels)
    whole = LinearClassifier(
        weight=np.zeros((n_classes, train.d)),
        bias=np.full(n_classes, bias.min()),
        strength=fitted.strength,
    )
    whole.weight[found] = weight
    whole.bias[found] = bias
    return whole


def fixed_accuracy(
    train_features: Float[np.ndarray, "n d"],
    train_labels: Int[np.ndarray, " n_labels"],
    val_features: Float[np.ndarray, "m e"],
    val_labels: Int[np.ndarray, " m_labels"],
    *,
    seed: int = 0,
    strengths: tuple[float, ...] = STRENGTHS,
) -> Measured:
    """Return the validation accuracy, in percent, of a linear classifier on fixed features.

        min_W,b  1/n sum_i CE(W x_i + b, y_i) + strength/2 ||W||^2

    on features standardised by the training images. The strength is the one with the best
    accuracy on a held-out fifth of each class's training images (the greater of equals; a class
    of one image holds nothing out; without any held-out image, the strength nearest 0.1). Then
    all training images are fitted again. The validation images decide nothing. Neither the order
    of the training images nor the numbering of the classes matters. `null` is the share of the
    largest class among the validation images; validation images of a class that training lacks
    count as mistaken.

    Source: Plested, Shen and Gedeon 2021, arXiv 2107.08585, section 4.1.

    Args:
        train_features: One row per training image.
        train_labels: Their classes.
        val_features: One row per validation image, with the same columns.
        val_labels: Their classes.
        seed: Draws the held-out fifth.
        strengths: L2 strengths to choose from, above 0.
    """
    train = classes_of(train_features, train_labels, drop_constant=False)
    if isinstance(train, str):
        return Measured(name="fixed_accuracy", reason=train)
    x_val = np.asarray(val_features, dtype=np.float64)
    reason = _refusal(train, x_val, val_labels, strengths)
    if reason:
        return Measured(name="fixed_accuracy", reason=reason)
    fitted = _fitted_to(train, seed=seed, strengths=strengths)
    standardised = fitted.scaler.transform(x_val)
    predicted = np.unique(train_labels)[fitted.model.predict(standardised)]
    return Measured(
        name="fixed_accuracy",
        value=100 * float(np.mean(predicted == val_labels)),
        null=100 * float(np.unique(val_labels, return_counts=True)[1].max() / len(val_labels)),
        settings={
            "protocol": PROTOCOL,
            "strength": fitted.strength,
            "strengths": ", ".join(f"{s:g}" for s in strengths),
            "converged": bool(fitted.model.n_iter_.max() < MAX_ITERATIONS),
            "seed": seed,
            "n_train": train.n,
            "n_held_out": fitted.n_held_out,
            "n_val": len(val_labels),
            "n_val_of_unseen_classes": int((~np.isin(val_labels, train_labels)).sum()),
        },
    )


def _refusal(
    train: Classes,
    val_features: Float64[np.ndarray, "m e"],
    val_labels: Int[np.ndarray, " m_labels"],
    strengths: tuple[float, ...],
) -> str:
    """Return why nothing can be trained or judged; nothing if all fits."""
    if not strengths or not all(0 < strength < np.inf for strength in strengths):
        return f"strengths must be positive and at least one, got {strengths}; give L2 strengths"
    if len(val_labels) == 0 or val_features.shape != (len(val_labels), train.d):
        return (
            f"validation features must be (m >= 1, {train.d}) with m labels, got "
            f"{val_features.shape} and {len(val_labels)}; take them from the same layer"
        )
    n_bad = int(val_features.size - np.count_nonzero(np.isfinite(val_features)))
    if n_bad:
        return f"validation features must be finite, got {n_bad} values that are not; check them"
    greatest = max(float(np.abs(train.features).max()), float(np.abs(val_features).max()))
    if greatest > 1e100:
        return f"features must be below 1e100 to be squared, got {greatest:.3g}; scale them"
    return ""


class _Regression(NamedTuple):
    """A regression on features that a scaler standardises, and how its strength was chosen."""

    scaler: StandardScaler
    model: LogisticRegression
    strength: float
    n_held_out: int


def _fitted_to(train: Classes, *, seed: int, strengths: tuple[float, ...]) -> _Regression:
    x, y = _in_own_order(train, seed)
    strength, n_held_out = _chosen(x, y, tuple(sorted(strengths, reverse=True)))
    scaler = StandardScaler().fit(x)
    model = _fitted(scaler.transform(x), y, strength)
    return _Regression(scaler, model, strength, n_held_out)


def _in_own_order(
    train: Classes, seed: int
) -> tuple[Float64[np.ndarray, "n d"], Int64[np.ndarray, " n"]]:
    """Return the images shuffled by the seed, from an order that their content alone gives."""
    by_content = np.lexsort(train.features.T)
    order = by_content[np.random.default_rng(seed).permutation(train.n)]
    return train.features[order], train.labels[order]


def _chosen(
    x: Float64[np.ndarray, "n d"], y: Int64[np.ndarray, " n"], strengths: tuple[float, ...]
) -> tuple[float, int]:
    """Return the strength that held-out training images favour, and how many were held out."""
    held_out = _held_out(y)
    if not held_out.any():
        return min(strengths, key=lambda s: abs(math.log(s / DEFAULT_STRENGTH))), 0
    if len(strengths) == 1:
        return strengths[0], 0
    scaled = StandardScaler().fit(x[~held_out]).transform(x)
    x_fit, x_held = scaled[~held_out], scaled[held_out]
    scores = [_fitted(x_fit, y[~held_out], s).score(x_held, y[held_out]) for s in strengths]
    return strengths[int(np.argmax(scores))], int(held_out.sum())


def _held_out(y: Int64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Mark the first fifth of each class, at least one image of each that has two."""
    held_out = np.zeros(len(y), dtype=np.bool_)
    for c in np.unique(y):
        rows = np.flatnonzero(y == c)
        if len(rows) > 1:
            held_out[rows[: max(1, len(rows) // HELD_OUT_PART)]] = True
    return held_out


def _fitted(
    x: Float64[np.ndarray, "n d"], y: Int64[np.ndarray, " n"], strength: float
) -> LogisticRegression:
    """Return the classifier that minimises mean cross-entropy + strength/2 ||W||^2."""
    model = LogisticRegression(C=1 / (strength * len(y)), max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result says whether it did
        return model.fit(x, y)
