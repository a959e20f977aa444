"""Values of recipes: what each would give on average over seeds, as far as its runs tell.

The best of many single runs is partly lucky. So a recipe's mean is *shrunken*: drawn towards the
mean of all recipes, the more the fewer runs it has (a normal model of recipes and seeds, both
variances estimated from the study: James and Stein 1961, Efron and Morris 1975). Without that, the
recipe that ran once and best would win over one that has shown the same five times.

Which recipe should run once more is what the *knowledge gradient* says (Frazier, Powell and
Dayanik 2008): the one whose next run is expected to raise the value of the recommended recipe most.
"""

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from nbtl_search.evidence.noise import SeedNoise, seed_noise
from nbtl_search.spec.verdict import Estimate, Interval

Key = TypeVar("Key", bound=Hashable)

_MIN_SHARE: Final = 0.25
"""Recipes differ at least by this part of the variance of a run: a few that happen to be alike do
not tell that all are."""


@dataclass(frozen=True, kw_only=True)
class RecipeValue:
    """What is known of one recipe; percent and squared points."""

    n: int
    """Runs."""
    mean: float
    """Shrunken."""
    variance: float
    """Of that mean."""
    run_variance: float
    """Of a single run."""


@dataclass(frozen=True, kw_only=True)
class Values(Generic[Key]):
    """What is known of all recipes of a study."""

    by: Mapping[Key, RecipeValue]
    noise: SeedNoise
    centre: float
    """Mean of the recipes."""
    spread: float
    """Their variance; infinite where there is one alone."""

    def estimate(self, key: Key, *, confidence: float = 0.95) -> Estimate:
        """Return a recipe's value with its interval.

        Raises:
            KeyError: the recipe has no run.
            ValueError: the confidence is not between 0 and 1.
        """
        found = self.by[key]
        half = self.noise.quantile(confidence) * math.sqrt(found.variance)
        return Estimate(
            n=found.n,
            mean=found.mean,
            low=max(0.0, found.mean - half),
            high=min(100.0, found.mean + half),
            confidence=confidence,
        )

    def probability_better(self, one: Key, other: Key) -> float:
        """Return the probability that one recipe is better than another."""
        ours, theirs = self.by[one], self.by[other]
        return self.noise.probability_above(
            ours.mean - theirs.mean, variance=ours.variance + theirs.variance
        )

    def ranked(self, order: Sequence[Key]) -> list[Key]:
        """Return the recipes with runs, the most valuable first; of equal ones in the order given.

        Equal is what differs by rounding: values are sums in an order that means nothing.
        """
        known = [key for key in order if key in self.by]
        return sorted(known, key=lambda key: -round(self.by[key].mean, 9))

    def level_with_best(self, order: Sequence[Key]) -> list[Key]:
        """Return the recipes within a validation image of the best, the most valuable first."""
        ranked = self.ranked(order)
        image = 100.0 / self.noise.n_images
        return [key for key in ranked if self.by[key].mean > self.by[ranked[0]].mean - image]

    def gain(self, one: Key, other: Key, *, confidence: float = 0.95) -> Interval:
        """Return by how much one recipe is better than another, with its interval.

        Raises:
            KeyError: a recipe has no run.
            ValueError: the confidence is not between 0 and 1.
        """
        ours, theirs = self.by[one], self.by[other]
        mean = ours.mean - theirs.mean
        half = self.noise.quantile(confidence) * math.sqrt(ours.variance + theirs.variance)
        return Interval(
            n=min(ours.n, theirs.n),
            mean=mean,
            low=mean - half,
            high=mean + half,
            confidence=confidence,
        )

    def gain_of_a_new_one(self) -> float:
        """Return by how much one run of a further recipe like these raises the best on average."""
        run_variance = self.noise.variance(self.centre)
        prior = RecipeValue(n=0, mean=self.centre, variance=self.spread, run_variance=run_variance)
        best = max(value.mean for value in self.by.values())
        return _expected_gain(prior, rival=best, n_pending=0)

    def most_telling(self, pending: Mapping[Key, int]) -> tuple[Key, float] | None:
        """Return the recipe that should run once more, and the points that are expected of it.

        Args:
            pending: runs of a recipe that are under way; they count as if they had given its mean.

        Returns:
            None where there are no two recipes.
        """
        if len(self.by) < 2:
            return None
        first, second, *_ = sorted(self.by, key=lambda key: -self.by[key].mean)
        gains = {
            key: _expected_gain(
                value,
                rival=self.by[second if key == first else first].mean,
                n_pending=pending.get(key, 0),
            )
            for key, value in self.by.items()
        }
        # Of two rivals either run tells about as much; that of the better is of more use.
        least = 0.9 * max(gains.values())
        chosen = max(self.by, key=lambda key: (gains[key] >= least, self.by[key].mean))
        return chosen, gains[chosen]


def values_of(
    recipes: Mapping[Key, Sequence[float]],
    *,
    n_images: int,
    others: Mapping[Key, Sequence[float]] | None = None,
) -> Values[Key]:
    """Return what is known of recipes from their runs.

    Args:
        recipes: accuracies in percent over the seeds; those without any are left out.
        n_images: that they are measured on.
        others: candidates of which nothing is learnt of noise and recipes in general, such as
            averages of the recipes' own weights.
    """
    known = {key: [float(value) for value in runs] for key, runs in recipes.items() if runs}
    noise = seed_noise(known.values(), n_images=n_images)
    means = [statistics.fmean(runs) for runs in known.values()]
    centre, spread = _population(means, [len(runs) for runs in known.values()], noise)
    added = {key: [float(value) for value in runs] for key, runs in (others or {}).items() if runs}
    return Values(
        by={
            key: _value(runs, centre=centre, spread=spread, noise=noise)
            for key, runs in (known | added).items()
        },
        noise=noise,
        centre=centre,
        spread=spread,
    )


def _population(
    means: Sequence[float], counts: Sequence[int], noise: SeedNoise
) -> tuple[float, float]:
    """Return the mean of the recipes and their variance, by moments; infinite for a single one."""
    if len(means) < 2:
        return (means[0] if means else 0.0), math.inf
    run_variances = [noise.variance(mean) for mean in means]
    of_means = statistics.fmean(v / n for v, n in zip(run_variances, counts, strict=True))
    least = _MIN_SHARE * statistics.fmean(run_variances)
    return statistics.fmean(means), max(statistics.variance(means) - of_means, least)


def _value(runs: Sequence[float], *, centre: float, spread: float, noise: SeedNoise) -> RecipeValue:
    mean = statistics.fmean(runs)
    run_variance = noise.variance(mean)
    of_mean = run_variance / len(runs)
    weight = 1.0 if math.isinf(spread) else spread / (spread + of_mean)
    return RecipeValue(
        n=len(runs),
        mean=centre + weight * (mean - centre),
        variance=weight * of_mean,
        run_variance=run_variance,
    )


def _expected_gain(value: RecipeValue, *, rival: float, n_pending: int) -> float:
    """Return by how much one more run raises the best mean on average."""
    variance = 1 / (1 / value.variance + n_pending / value.run_variance)
    shift = variance / math.sqrt(variance + value.run_variance)
    z = -abs(value.mean - rival) / shift
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return shift * (z * math.erfc(-z / math.sqrt(2)) / 2 + density)
