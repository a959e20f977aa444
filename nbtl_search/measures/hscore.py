"""H-score: how much of the features' variance the classes explain, in whitened features."""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int
from sklearn.covariance import ledoit_wolf_shrinkage

from nbtl_search.measures.classes import Classes, classes_of, condition
from nbtl_search.spec.diagnosis import Measured
from nbtl_search.spec.recipe import SettingValue

NAME = "hscore"
NAME_REGULARISED = "hscore_regularised"
MAX_CONDITION = 1e10  # beyond it, what is left of the inverse in float64 is rounding


def hscore(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n_labels"]) -> Measured:
    """Measure H = tr(cov(f)^-1 cov(E[f|y])), from 0 to C-1.

    cov(f) = (1/N) sum_i (x_i - m)(x_i - m)^T; cov(E[f|y]) is S_B of the Fisher score. There is
    no value for N-C < D, where H goes to C-1 whatever the features say.

    The null D (C-1)/(N-1) is the exact mean over all permutations of the labels.

    Source: Bao et al., "An information-theoretic approach to transferability in task transfer
    learning", ICIP 2019.
    """
    classes = classes_of(features, labels)
    if isinstance(classes, str):
        return Measured(name=NAME, reason=classes)
    settings = _settings(classes)
    n, d, n_classes = classes.n, classes.d, classes.n_classes
    if n - n_classes < d:
        reason = f"N-C >= D must hold, got {n}-{n_classes} < {d}; use hscore_regularised"
        return Measured(name=NAME, reason=reason, settings=settings)
    total = _total(classes)
    cond = condition(total)
    if cond > MAX_CONDITION:
        reason = f"cond(cov f) <= {MAX_CONDITION:g} must hold, got {cond:.2g}"
        reason += "; use hscore_regularised"
        return Measured(name=NAME, reason=reason, settings=settings)
    value = _trace(scipy.linalg.cholesky(total, lower=True), classes.between)
    settings["per_class"] = value / (n_classes - 1)
    return Measured(name=NAME, value=value, null=d * (n_classes - 1) / (n - 1), settings=settings)


def hscore_regularised(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n_labels"]
) -> Measured:
    """Measure (1-s) tr(Sigma_s^-1 cov(E[f|y])), which also stands for few images.

    ::

        Sigma_s = (1-s) cov(f) + s tr(cov(f))/D I

    with the shrinkage s of Ledoit and Wolf (2004). The null is the exact mean over all
    permutations of the labels, (1-s) (C-1)/(N-1) tr(Sigma_s^-1 cov(f)).

    Source: Ibrahim et al., "Newer is not always better: rethinking transferability metrics,
    their peculiarities, stability and performance", 2021, arXiv:2110.06893.
    """
    classes = classes_of(features, labels)
    if isinstance(classes, str):
        return Measured(name=NAME_REGULARISED, reason=classes)
    settings = _settings(classes)
    n, d, n_classes = classes.n, classes.d, classes.n_classes
    total = _total(classes)
    shrinkage = float(ledoit_wolf_shrinkage(classes.features - classes.mean, assume_centered=True))
    shrunk = (1 - shrinkage) * total + shrinkage * np.trace(total) / d * np.eye(d)
    settings["shrinkage"] = shrinkage
    try:
        lower = scipy.linalg.cholesky(shrunk, lower=True)
    except scipy.linalg.LinAlgError:
        reason = f"the shrunk covariance must be positive definite, it is not with {shrinkage=:.2g}"
        reason += "; give more images"
        return Measured(name=NAME_REGULARISED, reason=reason, settings=settings)
    value = (1 - shrinkage) * _trace(lower, classes.between)
    settings["per_class"] = value / (n_classes - 1)
    explained = float(np.trace(scipy.linalg.cho_solve((lower, True), total)))
    null = (1 - shrinkage) * (n_classes - 1) / (n - 1) * explained
    return Measured(name=NAME_REGULARISED, value=value, null=null, settings=settings)


def _settings(classes: Classes) -> dict[str, SettingValue]:
    """Return what the value depends on."""
    return {
        "n": classes.n,
        "d": classes.d,
        "n_classes": classes.n_classes,
        "dropped_columns": classes.n_constant,
        "null_by": "mean over all permutations",
    }


def _total(classes: Classes) -> Float64[np.ndarray, "d d"]:
    """Return cov(f), with 1/N."""
    centred = classes.features - classes.mean
    total: Float64[np.ndarray, "d d"] = centred.T @ centred / classes.n
    return total


def _trace(lower: Float64[np.ndarray, "d d"], root: Float64[np.ndarray, "k d"]) -> float:
    """Return tr((L L^T)^-1 root^T root)."""
    whitened = scipy.linalg.solve_triangular(lower, root.T, lower=True)
    return float(np.vdot(whitened, whitened))
