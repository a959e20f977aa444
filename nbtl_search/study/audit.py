"""Audit of early stopping: what became of trials that a rung would have stopped, had it been let.

One trial in ten, drawn by lot when it begins, runs to its end whatever the rungs say. Those of them
that are not among the best of a rung in the end are what early stopping throws away, seen to their
end: how many would have been the best of their study?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nbtl_search.ledger import grants
from nbtl_search.ledger.database import Storage
from nbtl_search.ledger.promotion import Ladder, Standing, best_at
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.study import store
from nbtl_search.study.store import Study


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What early stopping did, in one study or in several."""

    n_stopped: int
    """Audited trials that a rung would have stopped."""
    n_best: int
    """Those of them that ended better than all others of their study."""
    epochs_trained: int
    epochs_saved: int
    """That the trials which were stopped would still have taken."""

    @property
    def saved(self) -> float:
        """Return the share of all epochs that was saved."""
        return self.epochs_saved / max(1, self.epochs_saved + self.epochs_trained)

    def probability(self, *, confidence: float = 0.95) -> tuple[float, float, float] | None:
        """Return how probable it is that a stopped trial is the best, with its interval.

        Exact (Clopper and Pearson 1934). None before a trial was audited that would have been
        stopped.
        """
        k, n = self.n_best, self.n_stopped
        if n == 0:
            return None
        from scipy.special import betaincinv  # noqa: PLC0415  (most commands audit nothing)

        tail = (1 - confidence) / 2
        low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
        high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
        return k / n, low, high


def audit(study: Study) -> Audit:
    """Return what early stopping did in a search so far.

    Raises:
        StorageError: the database refuses.
    """
    with storage_errors(), study.storage.engine.connect() as connection:
        standings = grants.standings(connection, study.id, study.ladder.rungs)
    return audit_of(standings, study.ladder)


def audit_of(standings: Sequence[Standing], ladder: Ladder) -> Audit:
    """Return what early stopping did, from where the trials of a search stand."""
    stopped = [
        one
        for one in standings
        if one.audited and one.state == "complete" and _is_stopped(one, standings, ladder)
    ]
    cut = [one for one in standings if one.state == "pruned" and one.cause is None]
    return Audit(
        n_stopped=len(stopped),
        n_best=sum(_is_best(one, standings) for one in stopped),
        epochs_trained=sum(one.granted for one in standings),
        epochs_saved=sum(ladder.n_epochs - one.granted for one in cut),
    )


def pooled(storage: Storage) -> Audit:
    """Return what early stopping did in all searches of the database together.

    Raises:
        StorageError: the database refuses.
    """
    found = [audit(study) for study in store.open_all(storage)]
    return Audit(
        n_stopped=sum(one.n_stopped for one in found),
        n_best=sum(one.n_best for one in found),
        epochs_trained=sum(one.epochs_trained for one in found),
        epochs_saved=sum(one.epochs_saved for one in found),
    )


def _is_stopped(one: Standing, every: Sequence[Standing], ladder: Ladder) -> bool:
    """Tell whether a trial is not among the best of a rung, as far as trials have come there."""
    chosen = [best_at(index, every, ladder) for index in range(len(ladder.rungs))]
    return any(best and one not in best for best in chosen)


def _is_best(one: Standing, every: Sequence[Standing]) -> bool:
    others = [
        other.value
        for other in every
        # First runs with first runs: who is among the best runs again, and is the luckier for it.
        if other.number != one.number
        and other.repeat_of is None
        and other.state == "complete"
        and other.value is not None
    ]
    return one.value is not None and one.value > max(others, default=-math.inf)
