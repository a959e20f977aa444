"""GBC: how far the classes, each taken as a Gaussian, overlap pairwise.

    GBC = - sum_{i != j} exp(-D_B(i, j))

with D_B the Bhattacharyya distance. Pandy, Agostinelli, Uijlings, Ferrari and Mensink 2022,
"Transferability estimation using Bhattacharyya class separability", CVPR, arXiv 2111.12780.
"""

import numpy as np
from jaxtyping import Float, Float64, Int
from sklearn.decomposition import PCA

from nbtl_search.measures.classes import Classes, classes_of
from nbtl_search.spec.diagnosis import Measured


def gbc(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n_labels"],
    *,
    n_components: int = 64,
    variance_floor: float = 1e-4,
) -> Measured:
    """Return minus the Bhattacharyya coefficients of all ordered pairs of classes.

        GBC = - sum_{i != j} exp(-D_B(i, j)),   -C(C-1) <= GBC <= 0
        D_B = sum_k (m_ik - m_jk)^2 / (8 v_k) + 1/2 ln (v_k / sqrt(v_ik v_jk)),
        v = (v_i + v_j) / 2

    v_i is the diagonal covariance of class i, 1/N_i, and no entry of it is below the floor; a
    class of one image therefore has the floor everywhere. Features are first reduced to their
    principal components (those of all images together), where they have more than `n_components`.
    -C(C-1) is reached by classes that are all alike; it is no null, since the classes of few
    images differ by chance.

    Source: Pandy et al. 2022, arXiv 2111.12780.

    Args:
        features: One row per image.
        labels: Target classes.
        n_components: Principal components to keep, at least 1.
        variance_floor: Least variance, in the features' squared unit, above 0.
    """
    classes = classes_of(features, labels)
    reason = classes if isinstance(classes, str) else ""
    if n_components < 1 or not 0 < variance_floor < np.inf:
        reason = (
            "GBC needs n_components >= 1 and variance_floor > 0, "
            f"got {n_components} and {variance_floor}; give positive numbers"
        )
    if isinstance(classes, str) or reason:
        return Measured(name="gbc", reason=reason)
    x = _principal(classes.features, n_components)
    means, variances = _gaussians(x, classes, variance_floor)
    if not (np.isfinite(means).all() and np.isfinite(variances).all()):
        return Measured(
            name="gbc",
            reason="class variances must be finite, got an overflow for features up to "
            f"{np.abs(classes.features).max():.3g}; scale the features",
        )
    return Measured(
        name="gbc",
        value=0.0 - 2 * _overlap(means, variances),
        settings={
            "n_components": x.shape[1],
            "reduced": x.shape[1] < classes.d,
            "covariance": "diagonal",
            "variance_floor": variance_floor,
            "pairs": "ordered",
            "n_constant": classes.n_constant,
        },
    )


def _principal(x: Float64[np.ndarray, "n d"], n_components: int) -> Float64[np.ndarray, "n k"]:
    """Return the leading principal components of x, or x where it has no more columns."""
    n, d = x.shape
    if d <= n_components:
        return x
    # Neither solver draws random numbers; the one takes n d^2 steps, the other n^2 d.
    pca = PCA(min(n_components, n), svd_solver="full" if n < d else "covariance_eigh")
    with np.errstate(over="ignore", invalid="ignore"):
        projected: Float64[np.ndarray, "n k"] = pca.fit_transform(x)
    return projected


def _gaussians(
    x: Float64[np.ndarray, "n k"], classes: Classes, variance_floor: float
) -> tuple[Float64[np.ndarray, "c k"], Float64[np.ndarray, "c k"]]:
    """Return each class's mean and floored diagonal covariance."""
    rows = [x[classes.labels == c] for c in range(classes.n_classes)]
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.stack([of_class.mean(axis=0) for of_class in rows])
        variances = np.stack([of_class.var(axis=0) for of_class in rows])
    return means, np.maximum(variances, variance_floor)


def _overlap(means: Float64[np.ndarray, "c k"], variances: Float64[np.ndarray, "c k"]) -> float:
    """Return the sum of exp(-D_B) over the unordered pairs."""
    logs, total = np.log(variances), 0.0
    for i in range(len(means) - 1):
        middle = (variances[i] + variances[i + 1 :]) / 2
        with np.errstate(over="ignore"):  # an infinite distance overlaps by 0, which is right
            apart = (means[i] - means[i + 1 :]) ** 2 / (8 * middle)
        spread = (np.log(middle) - (logs[i] + logs[i + 1 :]) / 2) / 2
        total += float(np.exp(-(apart + spread).sum(axis=1)).sum())
    return total
