"""Null values: a measure of features that say nothing of the labels, which are shuffled."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from nbtl_search.spec.diagnosis import Measured

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
