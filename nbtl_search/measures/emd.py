"""Earth mover's distance between the class prototypes of a target and of the source dataset."""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy.spatial.distance import cdist

from nbtl_search.errors import DataError
from nbtl_search.measures.classes import classes_of
from nbtl_search.spec.diagnosis import Measured
from nbtl_search.spec.recipe import SettingValue

with warnings.catch_warnings():
    # Python warns of an escape in one of its docstrings when it first compiles POT 0.9.7
    warnings.simplefilter("ignore")
    import ot

NAMES = ("emd", "emd_similarity", "emd_scale_free")
NAME_ROWS = "emd_classifier_rows"
MAX_PIVOTS = 1_000_000  # of the network simplex; random 1000 by 257 prototypes need under 10,000


def prototypes_of(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n_labels"]
) -> tuple[Float64[np.ndarray, "c d"], Int64[np.ndarray, " c"]]:
    """Return each class's mean features, and its number of images.

    Raises:
        DataError: if the features are not finite, or there are fewer than two classes.
    """
    classes = classes_of(features, labels, drop_constant=False)
    if isinstance(classes, str):
        raise DataError(classes)
    return classes.means, classes.counts


def emd(
    prototypes: Float[np.ndarray, "c d"],
    counts: Int[np.ndarray, " c_counts"],
    source_prototypes: Float[np.ndarray, "k k_d"],
    source_counts: Int[np.ndarray, " k_counts"],
    *,
    gamma: float = 0.01,
    min_source_images: int = 200,
) -> tuple[Measured, ...]:
    """Measure the optimal transport cost between two sets of class prototypes.

    ::

        EMD            = min_f sum_ij f_ij ||s_i - t_j||,   f >= 0,
                         sum_j f_ij = N_i/N of the source, sum_i f_ij = N_j/N of the target
        emd_similarity = exp(-gamma EMD)
        emd_scale_free = EMD / (mean norm of all prototypes of both sets)

    The raw cost has the unit of the features: neither it nor the similarity can be compared
    between networks.

    Source: Cui et al., "Large scale fine-grained categorization and domain-specific transfer
    learning", CVPR 2018, arXiv:1806.06193.

    Args:
        prototypes: Mean features of each target class.
        counts: Images of each target class; a class without any is left out.
        source_prototypes: Mean features of each source class, by the same network.
        source_counts: Images of each source class.
        gamma: per unit of the features.
        min_source_images: Source classes with fewer images are left out.
    """
    settings: dict[str, SettingValue] = {
        "gamma": float(gamma),
        "min_source_images": int(min_source_images),
    }
    try:
        _check_gamma(gamma)
        target = _Weighted.of(prototypes, counts, least=1, whose="target")
        source = _Weighted.of(
            source_prototypes, source_counts, least=min_source_images, whose="source"
        )
        cost = _transport(source, target)
    except DataError as error:
        return tuple(Measured(name=name, reason=str(error), settings=settings) for name in NAMES)
    settings |= {"n_target_classes": target.weights.size, "n_source_classes": source.weights.size}
    norm = float(np.linalg.norm(np.concatenate([source.points, target.points]), axis=1).mean())
    if norm > 0:
        free = Measured(
            name=NAMES[2], value=cost / norm, settings=settings | {"mean_prototype_norm": norm}
        )
    else:
        reason = "the mean prototype norm must be > 0, got 0; use another layer"
        free = Measured(name=NAMES[2], reason=reason, settings=settings)
    return (
        Measured(name=NAMES[0], value=cost, settings=settings),
        Measured(name=NAMES[1], value=float(np.exp(-gamma * cost)), settings=settings),
        free,
    )


def emd_to_rows(
    prototypes: Float[np.ndarray, "c d"],
    counts: Int[np.ndarray, " c_counts"],
    rows: Float[np.ndarray, "k k_d"],
) -> Measured:
    """Measure the transport cost from target prototypes to the rows of the source classifier.

    Prototypes and rows are divided by their L2 norms, and the rows weigh the same. It stands in
    where the source images are not at hand; it is another measure than `emd_scale_free`, since a
    row points to where its class is told from the others, not to where its images are.

    Args:
        prototypes: Mean features of each target class.
        counts: Images of each target class; a class without any is left out.
        rows: Weights of the source classifier, one row per source class.
    """
    settings: dict[str, SettingValue] = {"measure": "classifier rows, not EMD between images"}
    try:
        target = _Weighted.of(prototypes, counts, least=1, whose="target").on_sphere("target")
        equal = np.ones(len(rows), dtype=np.int64)
        source = _Weighted.of(rows, equal, least=1, whose="classifier").on_sphere("classifier")
        cost = _transport(source, target)
    except DataError as error:
        return Measured(name=NAME_ROWS, reason=str(error), settings=settings)
    settings |= {"n_target_classes": target.weights.size, "n_rows": source.weights.size}
    return Measured(name=NAME_ROWS, value=cost, settings=settings)


def _check_gamma(gamma: float) -> None:
    """Check the similarity's scale.

    Raises:
        DataError: if it is negative, infinite or no number.
    """
    if not 0 <= gamma < np.inf:
        message = f"gamma must be a finite number >= 0, got {gamma}; 0.01 is the default"
        raise DataError(message)


@dataclass(frozen=True, kw_only=True)
class _Weighted:
    """Points in feature space, with weights that sum to one."""

    points: Float64[np.ndarray, "c d"]
    weights: Float64[np.ndarray, " c"]

    @classmethod
    def of(
        cls,
        points: Float[np.ndarray, "c d"],
        counts: Int[np.ndarray, " c_counts"],
        *,
        least: int,
        whose: str,
    ) -> "_Weighted":
        """Return the points that stand for at least so many images.

        Raises:
            DataError: if none does, or the arrays do not fit.
        """
        points, counts = np.asarray(points, dtype=np.float64), np.asarray(counts)
        if points.ndim != 2 or counts.shape != points.shape[:1]:
            message = f"{whose} prototypes must be (c, d) and counts (c,), got {points.shape} and "
            raise DataError(message + f"{counts.shape}; give one row and one count per class")
        kept = counts >= max(least, 1)
        if not kept.any():
            most = int(counts.max(initial=0))
            message = f"a {whose} class needs {max(least, 1)} images, the largest has {most}; "
            raise DataError(message + "give more images or ask for fewer")
        if not np.isfinite(points[kept]).all():
            message = f"{whose} prototypes must be finite, some are not; check the weights"
            raise DataError(message)
        return cls(points=points[kept], weights=counts[kept] / counts[kept].sum())

    def on_sphere(self, whose: str) -> "_Weighted":
        """Return the points divided by their norms.

        Raises:
            DataError: if a norm is zero.
        """
        norms = np.linalg.norm(self.points, axis=1, keepdims=True)
        if not norms.all():
            message = f"{whose} rows must have a norm > 0, {int((norms == 0).sum())} have 0; "
            raise DataError(message + "use another layer")
        return _Weighted(points=self.points / norms, weights=self.weights)


def _transport(source: _Weighted, target: _Weighted) -> float:
    """Return the least cost of moving the source's weight onto the target's.

    Raises:
        DataError: if the points have different widths, or the solver did not finish.
    """
    if source.points.shape[1] != target.points.shape[1]:
        widths = f"{source.points.shape[1]} and {target.points.shape[1]}"
        message = f"both sides must have the same D, got {widths}; use the same network"
        raise DataError(message)
    costs = cdist(source.points, target.points)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of stands in the log, too
        cost, log = ot.emd2(source.weights, target.weights, costs, numItermax=MAX_PIVOTS, log=True)
    if log["warning"] is not None or not np.isfinite(cost):
        message = f"optimal transport must converge, got {log['warning'] or cost!r}"
        raise DataError(" ".join(message.split()) + "; give fewer classes")
    return max(float(cost), 0.0)
