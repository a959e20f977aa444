"""SFDA: how well regularised discriminant analysis tells classes apart that were moved closer.

Shao, Zhao, Ge, Zhang, Yang, Wang, Shan and Luo 2022, "Not all models are equal: predicting model
transferability in a self-challenging Fisher space", ECCV, arXiv 2207.03036.
"""

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int
from scipy.special import softmax

from nbtl_search.measures.classes import Classes, classes_of
from nbtl_search.spec.diagnosis import Measured

LEAST_SHRINKAGE = 1e-10
SATURATED = 1e-6


def sfda(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n_labels"]) -> Measured:
    """Return the mean posterior of the true class, after the images were mixed with other classes.

        S_w   = 1/N sum_c sum_{i in c} (x_i - m_c)(x_i - m_c)'
        s     = max(exp(-5 lambda_max(S_w)), 1e-10)
        Sigma = (1 - s) S_w + s tr(S_w)/D I
        p(x)  = softmax_c( m_c' Sigma^-1 x - 1/2 m_c' Sigma^-1 m_c + ln(N_c/N) )
        x_i <- p_{y_i}(x_i) x_i + (1 - p_{y_i}(x_i)) mean_{c != y_i} m_c
        SFDA  = 1/N sum_i p_{y_i}(x_i), refitted to the mixed images with the same s; in (0, 1]

    What the description leaves open, and what is done here: the analysis keeps all C-1
    discriminant directions, in which the posterior is that of the full space, so no eigenvectors
    are needed; s shrinks towards the mean variance, so that the analysis stays solvable at every
    scale of the features (s itself does depend on the scale); the other classes' means weigh the
    same, whatever their sizes; S_w is normalised by N; the softmax is taken once; the score is
    the posterior, not its logarithm. Columns that never vary are dropped. With
    N - C < D any labels can be told apart, and real features give 1 for shuffled labels too: a
    posterior that is 1 for every image is refused there.

    Source: Shao et al. 2022, arXiv 2207.03036.
    """
    classes = classes_of(features, labels)
    if isinstance(classes, str):
        return Measured(name="sfda", reason=classes)
    x = classes.features - classes.mean
    with np.errstate(over="ignore", invalid="ignore"):
        means = _means(x, classes)
        within = _within(x, means, classes)
    reason = _unsolvable(within)
    if reason:
        return Measured(name="sfda", reason=reason)
    d = classes.d
    largest = scipy.linalg.eigvalsh(within, subset_by_index=(d - 1, d - 1))[0]
    shrinkage = max(float(np.exp(-5 * largest)), LEAST_SHRINKAGE)
    own = _own_posterior(x, means, within, classes, shrinkage)
    if classes.n - classes.n_classes < classes.d and own.min() > 1 - SATURATED:
        return Measured(
            name="sfda",
            reason="SFDA needs n - C >= d where every posterior is 1, got "
            f"n = {classes.n}, C = {classes.n_classes}, d = {classes.d}; give more images",
        )
    others = (means.sum(axis=0) - means) / (classes.n_classes - 1)
    mixed = own[:, None] * x + (1 - own)[:, None] * others[classes.labels]
    means = _means(mixed, classes)
    within = _within(mixed, means, classes)
    reason = _unsolvable(within)
    if reason:
        return Measured(name="sfda", reason=f"after mixing: {reason}")
    return Measured(
        name="sfda",
        value=float(_own_posterior(mixed, means, within, classes, shrinkage).mean()),
        settings={
            "shrinkage": shrinkage,
            "shrinks_towards": "mean variance",
            "other_class_weights": "equal",
            "n_constant": classes.n_constant,
        },
    )


def _means(x: Float64[np.ndarray, "n d"], classes: Classes) -> Float64[np.ndarray, "c d"]:
    """Return the mean row of each class."""
    return np.stack([x[classes.labels == c].mean(axis=0) for c in range(classes.n_classes)])


def _within(
    x: Float64[np.ndarray, "n d"], means: Float64[np.ndarray, "c d"], classes: Classes
) -> Float64[np.ndarray, "d d"]:
    """Return S_w, the covariance within classes."""
    residuals = x - means[classes.labels]
    within: Float64[np.ndarray, "d d"] = residuals.T @ residuals / classes.n
    return within


def _unsolvable(within: Float64[np.ndarray, "d d"]) -> str:
    """Return why S_w cannot be shrunk to a matrix that has an inverse; nothing if it can."""
    trace = float(np.trace(within))
    if not 1e-200 < trace < 1e200:  # also nan
        return (
            "SFDA needs images that differ within their classes, by a finite amount, "
            f"got tr(S_w) = {trace:.3g}; give more images, or scale the features"
        )
    return ""


def _own_posterior(
    x: Float64[np.ndarray, "n d"],
    means: Float64[np.ndarray, "c d"],
    within: Float64[np.ndarray, "d d"],
    classes: Classes,
    shrinkage: float,
) -> Float64[np.ndarray, " n"]:
    """Return each image's posterior of its own class under the shrunk analysis."""
    shrunk = (1 - shrinkage) * within
    shrunk.flat[:: classes.d + 1] += shrinkage * np.trace(within) / classes.d
    weights = scipy.linalg.solve(shrunk, means.T, assume_a="pos")
    offsets = np.log(classes.counts / classes.n) - 0.5 * np.einsum("cd,dc->c", means, weights)
    posterior: Float64[np.ndarray, "n c"] = softmax(x @ weights + offsets, axis=1)
    own: Float64[np.ndarray, " n"] = posterior[np.arange(classes.n), classes.labels]
    return own
