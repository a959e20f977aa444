"""The ablation of a recipe: what each group of its dials is worth, and the runs that say so."""

from typing import Literal

from nbtl_search.spec.recipe import Count, NonNegative, SettingValue
from nbtl_search.spec.values import Value
from nbtl_search.spec.verdict import Interval, Summary

Need = Literal["needed", "not needed", "harmful", "cannot be told"]


class AblationRun(Value):
    """One run of an ablation, as the ledger has it."""

    number: Count
    variant: Count
    """Which recipe: 0 is the whole one."""
    name: str
    """Of the recipe."""
    seed: Count
    state: str
    n_epochs: Count
    seconds: NonNegative
    n_attempts: Count
    val_top1: float | None
    """In percent, after the last epoch of the schedule; None until the run has ended."""


class Worth(Value):
    """What a group of dials is worth in a recipe, or all groups together."""

    group: str
    """'L2-SP', or 'all' for the recipe against the default."""
    along: tuple[str, ...] = ()
    """Groups that go with it, as the recipe without it alone could not be trained."""
    variant: Count
    """The recipe without it."""
    changes: dict[str, tuple[SettingValue, SettingValue]]
    """Dials of the recipe, and of the recipe without the group, where they differ."""
    without: Summary
    """Validation top-1 of the recipe without the group, over its seeds."""
    n_failed: Count
    """Of those runs."""
    gain: Interval | None
    """The whole recipe minus that, over the seeds that both have; None until there is one."""
    need: Need
    """Needed or harmful: the interval is above or below zero; not needed: it holds zero, and goes
    no further than `useful` either way."""

    @property
    def name(self) -> str:
        """Return the group, and those that go with it."""
        return " and ".join((self.group, *self.along))


class Ablation(Value):
    """Where the latest ablation of a study stands. Accuracies are validation top-1 in percent."""

    round: Count
    study: str
    """The name under which its runs stand in the dashboard: 'dtd@ablation-1'."""
    trial: Count
    """Of the search, whose recipe it is."""
    name: str
    """Of that recipe."""
    n_seeds: Count
    """Runs of each variant, at most."""
    is_done: bool
    useful: float
    """Points below which a difference is of no use."""
    recipe: Summary
    """The whole recipe, over its seeds."""
    groups: tuple[Worth, ...]
    """Each group in which it differs from the default."""
    total: Worth
    runs: tuple[AblationRun, ...]
