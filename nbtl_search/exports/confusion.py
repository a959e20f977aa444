"""Confusion matrix: predicted against true classes, and accuracies with their intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How often an image of one class was taken for another."""

    labels: tuple[str, ...]
    matrix: Int64[np.ndarray, "classes classes"]
    """Row: the true class; column: the predicted one."""

    @property
    def n_images(self) -> int:
        """Return how many images were counted."""
        return int(self.matrix.sum())

    @property
    def n_right(self) -> int:
        """Return how many were taken for what they are."""
        return int(self.matrix.trace())

    @property
    def top1(self) -> float:
        """Return their percentage."""
        return 100 * self.n_right / self.n_images

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of top-1 in percent (Wilson, 1927)."""
        from scipy.stats import binomtest  # noqa: PLC0415  (most predictions have no labels)

        found = binomtest(self.n_right, self.n_images).proportion_ci(CONFIDENCE, method="wilson")
        return 100 * float(found.low), 100 * float(found.high)

    def present(self) -> list[int]:
        """Return the classes that occur, as true or as predicted ones."""
        occurs = (self.matrix.sum(0) + self.matrix.sum(1)) > 0
        return [int(index) for index in np.flatnonzero(occurs)]

    def per_class(self) -> list[tuple[int, int, int]]:
        """Return the class, its images, and how many of them were right, of each true class."""
        sums = self.matrix.sum(1)
        return [
            (int(index), int(sums[index]), int(self.matrix[index, index]))
            for index in np.flatnonzero(sums)
        ]

    def plain(self) -> dict[str, Any]:
        """Return plain data for JSON; accuracies in percent."""
        low, high = self.interval()
        return {
            "n": self.n_images,
            "top1": self.top1,
            "interval": {"low": low, "high": high, "confidence": CONFIDENCE, "method": "Wilson"},
            "per_class": [
                {"label": self.labels[index], "n": n, "top1": 100 * right / n}
                for index, n, right in self.per_class()
            ],
            "labels": list(self.labels),
            "matrix": self.matrix.tolist(),
        }


def count(
    truths: Sequence[int], predicted: Sequence[int], *, labels: Sequence[str]
) -> Confusion | None:
    """Count the pairs of true and predicted class; None where there are none."""
    if not truths:
        return None
    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrix, (np.asarray(truths), np.asarray(predicted)), 1)
    return Confusion(labels=tuple(labels), matrix=matrix)
