"""Comparisons of recipes over several seeds: mean, spread, confidence bounds, ties."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nbtl_search.spec.verdict import Interval, Summary

Candidate = tuple[int, ...]
"""The number of a trial, or those of several whose weights are averaged."""


def summary(values: Sequence[float]) -> Summary:
    """Return how many values there are, their mean and their sample standard deviation (n - 1).

    Both are computed from exact fractions, so that the order of the seeds leaves no trace and
    equal values have no spread.
    """
    plain = [float(value) for value in values]
    return Summary(
        n=len(plain),
        mean=statistics.mean(plain) if plain else None,
        std=statistics.stdev(plain) if len(plain) > 1 else None,
    )


def lower_bounds(
    groups: Mapping[Candidate, Sequence[float]], *, confidence: float = 0.9
) -> dict[Candidate, float | None]:
    """Return the one-sided lower confidence bound of each candidate's mean.

    The bound is mean - t_{confidence, f} * s / sqrt(n) (Student, 1908). The standard deviation s is
    pooled over all recipes, with f degrees of freedom: that of a few runs alone may happen to be
    next to nothing, and would then decide. Averages of weights are of the recipes' own runs and add
    nothing to it.

    Args:
        groups: accuracies over the seeds, by candidate.
        confidence: that the mean is not below the bound.

    Returns:
        None for a candidate without a value, and for all where none has two.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    found = {one: summary(values) for one, values in groups.items()}
    recipes = [each for one, each in found.items() if len(one) == 1 and each.n]
    n_free = sum(each.n - 1 for each in recipes)
    squares = math.fsum((each.n - 1) * (each.std or 0.0) ** 2 for each in recipes)
    quantile = _quantile(confidence, n_free=n_free, sides=1)
    pooled = math.sqrt(squares / n_free) if n_free else math.nan
    return {
        one: None
        if each.mean is None or n_free == 0
        else each.mean - quantile * pooled / math.sqrt(each.n)
        for one, each in found.items()
    }


def paired_gain(
    ours: Mapping[int, float], theirs: Mapping[int, float], *, confidence: float = 0.95
) -> Interval | None:
    """Return the two-sided paired t interval of the mean of ours - theirs; None without a pair.

    Args:
        ours: accuracy in percent by seed.
        theirs: likewise; only seeds that both have count.
        confidence: that the interval holds the mean difference.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    found = summary([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])
    quantile = _quantile(confidence, n_free=found.n - 1, sides=2)
    if found.mean is None:
        return None
    half = None if found.std is None else quantile * found.std / math.sqrt(found.n)
    return Interval(
        n=found.n,
        mean=found.mean,
        low=None if half is None else found.mean - half,
        high=None if half is None else found.mean + half,
        confidence=confidence,
    )


def choose(
    groups: Mapping[Candidate, Sequence[float]],
    *,
    default: Candidate,
    confidence: float = 0.9,
) -> Candidate:
    """Return the winning candidate: that with the highest lower confidence bound.

    On equal bounds the higher mean wins, then the default, then the average of fewer trials, then
    the lowest number. Where there are no bounds, the means are compared.

    Args:
        groups: accuracies over the seeds, by candidate.
        default: the default recipe's.
        confidence: of the bound.

    Raises:
        ValueError: no candidate has a value.
    """
    bounds = lower_bounds(groups, confidence=confidence)
    eligible = [one for one, values in groups.items() if values]
    if not eligible:
        message = f"a winner must have a value, got none from {sorted(groups)}; run them"
        raise ValueError(message)

    def merit(one: Candidate) -> tuple[float, float, bool, int, tuple[int, ...]]:
        mean, bound = statistics.mean(map(float, groups[one])), bounds[one]
        lowest = tuple(-trial for trial in one)
        return mean if bound is None else bound, mean, one == default, -len(one), lowest

    return max(eligible, key=merit)


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


def _quantile(confidence: float, *, n_free: int, sides: Literal[1, 2]) -> float:
    """Return how many standard errors a bound lies from the mean (Student's t)."""
    if not 0 < confidence < 1:
        message = f"0 < confidence < 1 must hold, got {confidence}; use 0.9 or 0.95"
        raise ValueError(message)
    if n_free < 1:
        return math.nan
    from scipy.special import stdtrit  # noqa: PLC0415  (most commands compare nothing)

    return float(stdtrit(n_free, 1 - (1 - confidence) / sides))
