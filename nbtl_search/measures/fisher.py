"""Normalised Fisher score: how far apart the classes are, in units of their own spread."""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int

from nbtl_search.measures.classes import (
    Classes,
    class_means,
    classes_of,
    condition,
)
from nbtl_search.spec.diagnosis import Measured
from nbtl_search.spec.recipe import SettingValue

NAME = "fisher"
MAX_CONDITION = 1e10  # beyond it, what is left of S_w^-1 in float64 is rounding
MIN_SPREAD = 1e-24  # of the mean square; below it, the spread within the classes is rounding
N_PERMUTATIONS = 10
SEED = 0


def fisher(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n_labels"],
    *,
    ridge: float = 1e-4,
) -> Measured:
    """Measure F = trace(S_w^-1 S_B) / C, and what uninformative features would give.

    ::

        S_w = (1/N) sum_c sum_{i in c} (x_i - m_c)(x_i - m_c)^T + r tr(S_w)/D I
        S_B = sum_c (N_c/N) (m_c - m)(m_c - m)^T
        F   = (1/C) sum_c (N_c/N) ||L^-1 (m_c - m)||^2,   L L^T = S_w

    The null is D (C-1) / ((N-C-D-1) C), the mean for Gaussian features that do not depend on the
    class; it holds without a ridge and for N-C-D-1 > 0. Elsewhere it is the mean over shuffles of
    the labels. It can be larger than F of two other datasets: compare F - null, or equal N.

    Source: Fukunaga, "Introduction to Statistical Pattern Recognition", 2nd ed., 1990, ch. 10,
    with the trace divided by the number of classes.

    Args:
        features: One row per image. Columns that are constant are dropped.
        labels: One class index per image.
        ridge: r, without unit. With 0, F is the same for all invertible affine maps of the
            features, and there is no value where S_w is singular.
    """
    classes = classes_of(features, labels)
    settings: dict[str, SettingValue] = {"ridge": float(ridge)}
    if isinstance(classes, str):
        return Measured(name=NAME, reason=classes, settings=settings)
    settings |= {
        "n": classes.n,
        "d": classes.d,
        "n_classes": classes.n_classes,
        "dropped_columns": classes.n_constant,
    }
    within = classes.within()
    reason = _refusal(classes, within, ridge=ridge)
    value = None if reason else _score(within, classes.between, ridge=ridge)
    if value is None:
        reason = reason or f"S_w must be positive definite, it is not with {ridge=:g}; raise it"
        return Measured(name=NAME, reason=reason, settings=settings)
    margin = classes.n - classes.n_classes - classes.d - 1
    if ridge == 0 and margin > 0:
        null: float | None = classes.d * (classes.n_classes - 1) / (margin * classes.n_classes)
        settings["null_by"] = "formula"
    else:
        null = _permuted(classes, within, ridge=ridge)
        settings |= {"null_by": "permutation", "permutations": N_PERMUTATIONS, "seed": SEED}
    return Measured(name=NAME, value=value, null=null, settings=settings)


def _refusal(classes: Classes, within: Float64[np.ndarray, "d d"], *, ridge: float) -> str:
    """Return why S_w cannot be inverted; nothing if it can."""
    n, d, n_classes = classes.n, classes.d, classes.n_classes
    if not (np.isfinite(ridge) and ridge >= 0):
        return f"ridge must be a finite number >= 0, got {ridge}; 1e-4 is the default"
    mean_square = float(np.vdot(classes.features, classes.features)) / n
    if not np.isfinite(mean_square) or not np.trace(within) > MIN_SPREAD * mean_square:
        spread = float(np.trace(within))
        return f"images of a class must differ, got tr(S_w) = {spread:.2g}; give more images"
    if ridge > 0:
        return ""
    if n - n_classes < d:
        return f"N-C >= D must hold without a ridge, got {n}-{n_classes} < {d}; set ridge > 0"
    cond = condition(within)
    if cond > MAX_CONDITION:
        return f"cond(S_w) <= {MAX_CONDITION:g} must hold, got {cond:.2g}; set ridge > 0"
    return ""


def _score(
    within: Float64[np.ndarray, "d d"], between: Float64[np.ndarray, "c d"], *, ridge: float
) -> float | None:
    """Return F; None where S_w is not positive definite."""
    d = within.shape[0]
    ridged = within + ridge * np.trace(within) / d * np.eye(d)
    try:
        lower = scipy.linalg.cholesky(ridged, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError:
        return None
    whitened = scipy.linalg.solve_triangular(lower, between.T, lower=True)
    value = float(np.vdot(whitened, whitened)) / between.shape[0]
    return value if np.isfinite(value) else None


def _permuted(
    classes: Classes, within: Float64[np.ndarray, "d d"], *, ridge: float
) -> float | None:
    """Return the mean F over shuffled labels; None where one of them has no F.

    The total covariance S_w + S_B does not depend on the labels, so that a shuffle costs its
    class means and one Cholesky, not another pass over all pairs of columns.
    """
    rng = np.random.default_rng(SEED)
    total = within + classes.between.T @ classes.between
    scores = []
    for _ in range(N_PERMUTATIONS):
        shuffled = rng.permutation(classes.labels)
        means = class_means(classes.features, shuffled, classes.counts)
        between = np.sqrt(classes.counts / classes.n)[:, None] * (means - classes.mean)
        score = _score(total - between.T @ between, between, ridge=ridge)
        if score is None:
            return None
        scores.append(score)
    return float(np.mean(scores))
