"""Promotion: a free worker begins a new trial, or goes on with one that was paused at a rung.

Asynchronous successive halving of the promotion type (Li et al. 2020, arXiv 1810.05934, algorithm
2). A new trial first gets the epochs to the first rung, and pauses there with its checkpoint. Of
those that have reached a rung the best 1/reduction are promoted, one after the other, whenever a
worker is free: also much later, when weaker trials have come after. Nobody waits for anybody, and
a trial is stopped for good only when the study ends. A schedule keeps its length: what a trial has
trained at a rung is the beginning of its whole run.

The first rung comes late enough to be fair. Newly initialised batch norm keeps a network at
chance for its first updates, until its running statistics have settled: among 26 fine-tunes of
MobileNetV2 on ten DTD classes the third best stood at chance for two epochs of 12 updates. So no
rung lies before `min_epochs` and `min_updates`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search.spec import Pruning, StudySpec


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The epochs at which trials pause (1-based, rising), and how many go on from there."""

    rungs: tuple[int, ...]
    n_epochs: int
    """Of a whole trial."""
    pruning: Pruning
    repeats: float = 0.0
    """Share of the epochs that may go to further seeds of recipes."""
    n_images: int = 1
    """By which trials are judged."""

    def stop_after(self, epoch: int, *, protected: bool = False) -> int:
        """Return where a trial that was granted so many epochs pauses next, or ends."""
        later = [] if protected else [rung for rung in self.rungs if rung > epoch]
        return min([*later, self.n_epochs])


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a trial stands; accuracies in percent."""

    trial_id: int
    number: int
    state: str
    protected: bool
    """It never pauses, and so takes nothing of what a rung promotes."""
    audited: bool = False
    """It does not pause either, but counts at the rung like others."""
    granted: int
    """Epochs that it was given to train."""
    best_at: tuple[float | None, ...]
    """Its best validation top-1 until each rung; None where it has not come so far."""
    value: float | None = None
    """Of one that has ended."""
    repeat_of: int | None = None
    """The number of the trial whose recipe it trains with another seed."""
    cause: str | None = None
    """Why it ended, where that was not for its accuracy: it could not be trained, say."""

    @property
    def never_pauses(self) -> bool:
        """Tell whether no rung sets it aside."""
        return self.protected or self.audited


@dataclass(frozen=True, kw_only=True)
class Room:
    """What the budget of a study that is to run still has."""

    has_slot: bool
    """A new trial may begin."""
    epochs: int | None = None
    """That may still be granted; None without a limit."""
    n_first: int = 0
    """Recipes that are tried before one runs again: those that wait from the start."""

    def at_most(self, n_epochs: int) -> int:
        """Return so many epochs, or those that are left."""
        return n_epochs if self.epochs is None else min(n_epochs, self.epochs)


NEW: Final = -1
"""Chosen in place of a paused trial's id: a new trial."""


def ladder_of(spec: StudySpec, *, n_updates: int, n_images: int = 1) -> Ladder:
    """Return the rungs of a study whose epochs have so many updates, judged by so many images."""
    n_epochs, pruning = spec.train.epochs, spec.search.pruning
    floor = max(1, pruning.min_epochs, math.ceil(pruning.min_updates / n_updates))
    wanted = {max(floor, math.ceil(fraction * n_epochs)) for fraction in pruning.rungs}
    rungs = tuple(sorted(epoch for epoch in wanted if epoch < n_epochs))
    return Ladder(
        rungs=rungs,
        n_epochs=n_epochs,
        pruning=pruning,
        repeats=spec.search.repeats,
        n_images=n_images,
    )


def choose(standings: Sequence[Standing], room: Room, ladder: Ladder) -> int | None:
    """Return what a free worker trains next, or None where nothing is left that should be.

    Promotions come first, those from the highest rung before others. Where the epochs that are
    left are too few for another trial, the best of those that are paused get them. And a search
    that is about to end with none but protected trials trains the best of the others to the end.
    """
    if room.epochs == 0:
        return None
    cut_short = (one for one in standings if one.never_pauses and one.state == "paused")
    promoted = next(cut_short, None) or _promotable(standings, ladder)
    if promoted is not None:
        return promoted.trial_id
    if room.has_slot and _is_enough(room, ladder, is_first=not standings):
        return NEW
    paused = [one for one in standings if one.state == "paused"]
    if paused and (room.has_slot or not _has_result(standings, ladder)):
        return min(paused, key=_promise).trial_id
    return None


def _has_result(standings: Sequence[Standing], ladder: Ladder) -> bool:
    """Tell whether a trial beside the protected ones runs, may run, or is whole."""
    others = [one for one in standings if not one.protected]
    return any(
        one.state in {"running", "waiting"} or one.granted == ladder.n_epochs for one in others
    )


def _is_enough(room: Room, ladder: Ladder, *, is_first: bool) -> bool:
    """Tell whether a new trial would get to the first rung, or is the only one there will be."""
    return room.epochs is None or is_first or room.epochs >= ladder.stop_after(0)


def best_at(index: int, standings: Sequence[Standing], ladder: Ladder) -> list[Standing]:
    """Return the trials that a rung promotes, the best first, as far as trials have come there."""
    reached = [one for one in standings if one.best_at[index] is not None and not one.protected]
    if len(reached) < ladder.pruning.min_peers:
        return []
    # 33 / 1.1 is 30 to whoever wrote 1.1, and just below it in floating point.
    n_promoted = math.floor(len(reached) / ladder.pruning.reduction + 1e-9)
    # What was cancelled, or cannot be trained, takes no place of those that can.
    able = [one for one in reached if one.cause is None]
    return sorted(able, key=lambda one: (-(one.best_at[index] or 0.0), one.number))[:n_promoted]


def _promotable(standings: Sequence[Standing], ladder: Ladder) -> Standing | None:
    """Return the best paused trial that the highest possible rung promotes."""
    for index, rung in reversed(list(enumerate(ladder.rungs))):
        for one in best_at(index, standings, ladder):
            if one.state == "paused" and one.granted <= rung:
                return one
    return None


def _promise(one: Standing) -> tuple[int, float, int]:
    known = [value for value in one.best_at if value is not None]
    return -len(known), -max(known, default=0.0), one.number
