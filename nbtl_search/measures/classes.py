"""Preparation for all measures: features and labels checked, in float64, classes numbered 0..C-1.

With them the null value of a measure: of features that say nothing of the labels, which are
shuffled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Float64, Int, Int64
from numpy.typing import NDArray

from nbtl_search.spec.diagnosis import Measured


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Features by class; the arrays are read-only, since they may be the caller's own.

    Attributes:
        features: Without the columns that were dropped.
        labels: 0..C-1; classes without images are not numbered.
        counts: N_c, images per class, all of them at least one.
        means: m_c, one row per class.
        n_constant: Columns that had the same value in all images, and were dropped.
    """

    features: Float64[np.ndarray, "n d"]
    labels: Int64[np.ndarray, " n"]
    counts: Int64[np.ndarray, " c"]
    means: Float64[np.ndarray, "c d"]
    n_constant: int = 0

    @property
    def n(self) -> int:
        """Return N, the number of images."""
        return int(self.features.shape[0])

    @property
    def d(self) -> int:
        """Return D, the number of columns that were kept."""
        return int(self.features.shape[1])

    @property
    def n_classes(self) -> int:
        """Return C, the number of classes that have images."""
        return int(self.counts.size)

    @property
    def between(self) -> Float64[np.ndarray, "c d"]:
        """Return B, with S_B = B^T B = sum_c (N_c/N) (m_c - m)(m_c - m)^T."""
        root = np.sqrt(self.counts / self.n)[:, None]
        between: Float64[np.ndarray, "c d"] = root * (self.means - self.mean)
        return between

    def within(self) -> Float64[np.ndarray, "d d"]:
        """Return S_w = (1/N) sum_c sum_{i in c} (x_i - m_c)(x_i - m_c)^T."""
        residuals = self.features - self.means[self.labels]
        within: Float64[np.ndarray, "d d"] = residuals.T @ residuals / self.n
        return within

    @property
    def mean(self) -> Float64[np.ndarray, " d"]:
        """Return m, the mean over all images."""
        mean: Float64[np.ndarray, " d"] = self.counts @ self.means / self.n
        return mean


def classes_of(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n_labels"],
    *,
    drop_constant: bool = True,
) -> Classes | str:
    """Return the features by class, or the reason why no measure can be taken of them.

    Args:
        features: One row per image; never changed.
        labels: One whole number per image; numbers that no image has do not count as classes.
        drop_constant: Drop columns that are the same in all images, such as dead channels. A
            measure that has no intercept of its own keeps them.
    """
    x = np.asarray(features, dtype=np.float64)
    y = np.asarray(labels)
    reason = _refusal(x, y)
    if reason:
        return reason
    present, numbered, counts = np.unique(y, return_inverse=True, return_counts=True)
    if present.size < 2:
        return f"a measure needs two classes with images, got {present.size}; give more classes"
    n_columns = x.shape[1]
    if drop_constant:
        varying = x.min(axis=0) != x.max(axis=0)
        x = x if varying.all() else x[:, varying]
    if x.shape[1] == 0:
        return f"features must vary, got {n_columns} constant columns; use another layer"
    return Classes(
        features=_read_only(x),
        labels=_read_only(numbered.astype(np.int64)),
        counts=_read_only(counts.astype(np.int64)),
        means=_read_only(class_means(x, numbered, counts)),
        n_constant=n_columns - x.shape[1],
    )


def _refusal(x: NDArray[Any], y: NDArray[Any]) -> str:
    """Return what is wrong with the arrays; nothing if they fit."""
    if x.ndim != 2 or y.ndim != 1 or x.shape[0] != y.shape[0]:
        return (
            f"features must be (n, d) and labels (n,), got {x.shape} and {y.shape}; "
            "give one row and one label per image"
        )
    if not np.issubdtype(y.dtype, np.integer):
        return f"labels must be whole numbers, got {y.dtype}; give class indices"
    if x.shape[0] < 2:
        return f"a measure needs n >= 2 images, got {x.shape[0]}; give more images"
    n_bad = int(x.size - np.count_nonzero(np.isfinite(x)))
    if n_bad:
        return f"features must be finite, got {n_bad} values that are not; check the weights"
    return ""


def class_means(
    x: Float64[np.ndarray, "n d"], numbered: Int[np.ndarray, " n"], counts: Int[np.ndarray, " c"]
) -> Float64[np.ndarray, "c d"]:
    """Return the mean row of each class."""
    n = numbered.size
    # a sparse product: 30 times quicker than sums over the sorted rows, at 10,000 by 2048
    membership = scipy.sparse.csr_array(
        (np.ones(n), (numbered, np.arange(n))), shape=(counts.size, n)
    )
    means: Float64[np.ndarray, "c d"] = (membership @ x) / counts[:, None]
    return means


def condition(covariance: Float64[np.ndarray, "d d"]) -> float:
    """Return the largest eigenvalue over the smallest, at most 1/eps: beyond that is rounding."""
    eigenvalues = scipy.linalg.eigvalsh(covariance)
    largest = float(eigenvalues[-1])
    if not largest > 0:
        return float("inf")
    return largest / max(float(eigenvalues[0]), np.finfo(np.float64).eps * largest)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return a view through which nothing can be written."""
    view: NDArray[Any] = array.view()
    view.flags.writeable = False
    return view


Measure = Callable[[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]], Measured]

N_SHUFFLES = 3
SEED = 0


def with_null(
    measure: Measure, features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
) -> Measured:
    """Return what a measure gives, with its mean over shuffled labels as the null.

    A shuffle keeps the sizes of the classes and all there is between the features, so that the
    null has the bias of few images and many features in it; a null that is a formula or a bound
    gives way to it. There is none where the measure has no value, or none for a shuffle.
    """
    found = measure(features, labels)
    if found.value is None:
        return found
    rng = np.random.default_rng(SEED)
    values = [measure(features, rng.permutation(labels)).value for _ in range(N_SHUFFLES)]
    known = [value for value in values if value is not None]
    if len(known) < N_SHUFFLES:
        return found.replace(null=None)
    null = {"null_by": "permutation", "permutations": N_SHUFFLES, "seed": SEED}
    return found.replace(null=float(np.mean(known)), settings={**found.settings, **null})
