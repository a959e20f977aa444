"""Recommendation of a search: its recipes by what they are worth, and the best against the default.

A recipe is worth what it gives on average over seeds, as far as its runs tell (`evidence.values`);
the best single run is partly lucky, and is shown as what it is: a run.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nbtl_search.evidence.values import values_of
from nbtl_search.ledger import records
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.spec.verdict import Estimate, Interval


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What a search recommends so far. A recipe is named by the first trial that had it."""

    ranked: Sequence[tuple[TrialRecord, Estimate]]
    """Recipes that ran to their end, and what each is worth: the recommended one first, then by
    their values."""
    default: TrialRecord | None
    """The first trial of the default recipe, once it has started."""
    gain: Interval | None
    """Of the recommended over the default; None where it is the default, or one is missing."""

    @property
    def best(self) -> TrialRecord | None:
        """Return the first trial of the recommended recipe; None where none ran to its end."""
        return self.ranked[0][0] if self.ranked else None

    def value_of(self, trial: TrialRecord | None) -> Estimate | None:
        """Return what the recipe of a first trial is worth; None before it ran to its end."""
        return next((value for one, value in self.ranked if one == trial), None)


def recommend(trials: Iterable[TrialRecord], *, n_images: int) -> Recommendation:
    """Return the recipes of a search that ran to their end, by what they are worth.

    The default is recommended where nothing is better by a validation image. A recipe that could
    not be trained with another seed is left out.

    Args:
        trials: of a search.
        n_images: for validation.
    """
    first = {trial.number: trial for trial in trials}
    runs = {
        number: [trial.value or 0.0 for trial in whole]
        for number, whole in records.by_recipe(first.values()).items()
    }
    values = values_of(runs, n_images=n_images)
    ranked = values.ranked(sorted(runs))
    default = records.default_of(first.values())
    number = -1 if default is None else default.number
    if number in values.level_with_best(ranked):
        ranked = [number, *(other for other in ranked if other != number)]
    is_compared = number in values.by and ranked[0] != number
    return Recommendation(
        ranked=[(first[one], values.estimate(one)) for one in ranked],
        default=default,
        gain=values.gain(ranked[0], number) if is_compared else None,
    )
