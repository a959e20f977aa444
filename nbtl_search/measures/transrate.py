"""TransRate: the coding rate of all features less the mean coding rate of a class.

    TrR = R(F, e) - 1/C sum_c R(F_c, e),   R(F, e) = 1/2 ln det(I + F'F / (n e))

Huang, Huang, Rong, Yang and Wei 2022, "Frustratingly easy transferability estimation", ICML,
arXiv 2106.09362.
"""

import numpy as np
from jaxtyping import Float, Float64, Int

from nbtl_search.measures.classes import classes_of
from nbtl_search.spec.diagnosis import Measured


def transrate(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n_labels"],
    *,
    epsilon: float = 1e-4,
) -> Measured:
    """Return how many nats coding all features takes more than coding a class.

        TrR = R(F, e) - 1/C sum_c R(F_c, e),   R(F, e) = 1/2 ln det(I + F'F / (n e))

    F is centred by the mean over all images and F_c are its rows of class c, with n_c for n. Each
    class weighs the same and is not centred again, as in the authors' code: so the value cannot
    be negative for classes of equal size, and can be for others. It grows with the features'
    scale: epsilon is in their squared unit.

    Source: Huang et al. 2022, arXiv 2106.09362.

    Args:
        features: One row per image.
        labels: Target classes.
        epsilon: The distortion that the code may leave, above 0.
    """
    classes = classes_of(features, labels)
    reason = classes if isinstance(classes, str) else ""
    if not 0 < epsilon < np.inf:
        reason = f"TransRate needs epsilon > 0, got {epsilon}; give a positive number"
    if isinstance(classes, str) or reason:
        return Measured(name="transrate", reason=reason)
    centred = classes.features - classes.mean
    of_classes = [
        _coding_rate(centred[classes.labels == c], epsilon) for c in range(classes.n_classes)
    ]
    value = _coding_rate(centred, epsilon) - float(np.mean(of_classes))
    if not np.isfinite(value):
        return Measured(
            name="transrate",
            reason=f"ln det(I + F'F/(n e)) must be finite, got {value} for features up to "
            f"{np.abs(centred).max():.3g} and epsilon {epsilon:g}; scale the features",
        )
    return Measured(
        name="transrate",
        value=value,
        settings={
            "epsilon": epsilon,
            "class_weights": "equal",
            "centred": "globally",
            "n_constant": classes.n_constant,
        },
    )


def _coding_rate(x: Float64[np.ndarray, "n d"], epsilon: float) -> float:
    """Return 1/2 ln det(I + x'x/(n e)); nan where it cannot be represented.

    det(I + x'x) = det(I + xx'), so the smaller product will do.
    """
    n, d = x.shape
    with np.errstate(over="ignore", invalid="ignore"):
        gram = (x @ x.T if n < d else x.T @ x) / (n * epsilon)
        gram.flat[:: len(gram) + 1] += 1
        try:
            factor = np.linalg.cholesky(gram)
        except np.linalg.LinAlgError:
            return float("nan")
    return float(np.log(np.diag(factor)).sum())
