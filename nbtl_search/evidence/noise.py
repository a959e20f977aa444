"""Noise of seeds: how far runs of one recipe lie apart, and what that leaves of a difference.

Two or three runs do not tell their own spread: by chance they may be equal. So the spread is pooled
over all recipes of a study, and with what was recorded on other images. For that it is counted in
units of the binomial variance p (1 - p) / n of an accuracy p on n images, as accuracies near 100 %
and large validation sets vary less. The number of such units is the *dispersion* (McCullagh and
Nelder 1989, section 4.5). That of a new study is taken to be `PRIOR_DISPERSION`, with the weight of
`PRIOR_FREE` degrees of freedom; its own runs take over from there (Smyth 2004, "Linear models and
empirical Bayes methods", equation for the moderated variance).

`benchmarks/end_game.py noise` has the recorded dispersions: 0.13 to 2.34 in 14 sets of runs; the
prior that fits them best has 0.58 and 6.5 degrees of freedom. Ours is more careful, since it must
hold for networks and images that were not among them. By it 95 % intervals held 146 of 154 runs
that were to be foretold.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search.spec.verdict import Interval, Summary

PRIOR_DISPERSION: Final = 1.0
PRIOR_FREE: Final = 4.0


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """How far runs of one recipe lie apart that differ in their seed."""

    dispersion: float
    """Variance of a run, in units of the binomial variance."""
    n_free: float
    """Degrees of freedom of it."""
    n_images: int
    """That an accuracy is the percentage of."""

    def variance(self, accuracy: float) -> float:
        """Return the variance of a run, in squared points, at an accuracy in percent."""
        return self.dispersion * binomial_variance(accuracy, n_images=self.n_images)

    def quantile(self, confidence: float) -> float:
        """Return how many standard errors an interval reaches from its mean (Student, 1908).

        Raises:
            ValueError: the confidence is not between 0 and 1.
        """
        if not 0 < confidence < 1:
            message = f"0 < confidence < 1 must hold, got {confidence}; use 0.9 or 0.95"
            raise ValueError(message)
        from scipy.special import stdtrit  # noqa: PLC0415  (most commands compare nothing)

        return float(stdtrit(self.n_free, 1 - (1 - confidence) / 2))

    def probability_above(self, difference: float, *, variance: float) -> float:
        """Return the probability that a difference of means of this variance is above zero."""
        from scipy.special import stdtr  # noqa: PLC0415  (see above)

        return float(stdtr(self.n_free, difference / math.sqrt(variance)))


def binomial_variance(accuracy: float, *, n_images: int) -> float:
    """Return the variance of an accuracy in percent on so many images, in squared points.

    Laplace's rule of succession keeps it above zero where every image is right.
    """
    p = (accuracy / 100 * n_images + 1) / (n_images + 2)
    return 1e4 * p * (1 - p) / n_images


def seed_noise(groups: Iterable[Sequence[float]], *, n_images: int) -> SeedNoise:
    """Return the noise of runs, from the runs of each recipe and from the prior.

    Args:
        groups: accuracies in percent, of one recipe each.
        n_images: that they are measured on.
    """
    repeated = [values for values in groups if len(values) > 1]
    scaled = (
        (len(values) - 1)
        * statistics.variance(map(float, values))
        / binomial_variance(statistics.fmean(values), n_images=n_images)
        for values in repeated
    )
    n_free = PRIOR_FREE + sum(len(values) - 1 for values in repeated)
    dispersion = math.fsum([PRIOR_FREE * PRIOR_DISPERSION, *scaled]) / n_free
    return SeedNoise(dispersion=dispersion, n_free=n_free, n_images=n_images)


def summary(values: Iterable[float]) -> Summary:
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


def gain(
    ours: Mapping[int, float],
    theirs: Mapping[int, float],
    *,
    noise: SeedNoise,
    confidence: float = 0.95,
) -> Interval | None:
    """Return the two-sided t interval of the mean of ours - theirs; None without a pair.

    Its width comes from the pooled noise, and so is never zero. Runs that share a seed are taken
    for independent: in the recorded ones correlations between -0.4 and 0.9 were seen, on average
    above zero, so that the interval is rather too wide.

    Args:
        ours: accuracy in percent by seed.
        theirs: likewise; only seeds that both have count.
        noise: of all recipes compared.
        confidence: that the interval holds the mean difference.

    Raises:
        ValueError: the confidence is not between 0 and 1.
    """
    shared = sorted(ours.keys() & theirs.keys())
    quantile = noise.quantile(confidence)
    if not shared:
        return None
    mean = statistics.mean(float(ours[seed]) - float(theirs[seed]) for seed in shared)
    variance = sum(
        noise.variance(statistics.fmean(side[seed] for seed in shared)) / len(shared)
        for side in (ours, theirs)
    )
    half = quantile * math.sqrt(variance)
    return Interval(
        n=len(shared), mean=mean, low=mean - half, high=mean + half, confidence=confidence
    )
