"""Ensembles of the final runs of one candidate."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ensemble_top1(probabilities: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    """Return the percentage of images whose class has the highest mean probability.

    The mean is taken in float64; of classes that share the highest, the lowest number counts.

    Args:
        probabilities: of shape (n, n_classes), one array per seed.
        labels: the classes, of shape (n,).

    Raises:
        ValueError: there is no array or no image, or the shapes differ.
    """
    shapes = [array.shape for array in probabilities]
    if not shapes or len(labels) == 0 or set(shapes) != {(len(labels), shapes[0][-1])}:
        message = (
            f"an ensemble must have arrays of one shape (n, classes) and n > 0 labels, got "
            f"{shapes} and {labels.shape}; read the predictions of the same test images"
        )
        raise ValueError(message)
    total = np.zeros(shapes[0], dtype=np.float64)  # its order is the mean's, without its rounding
    for array in probabilities:
        total += array
    return 100.0 * float(np.mean(total.argmax(axis=1) == labels))
