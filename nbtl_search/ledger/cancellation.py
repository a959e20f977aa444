"""Cancellation of a trial: a wish on its row, by which it ends as soon as nobody trains it.

    cancel:           waiting, paused, or running with an expired lease ──► pruned
                      running ──► running, and its worker hears of it with the next heartbeat
    whatever sets such a trial aside (a halt, a rung, a failure) ──► pruned
    its worker dies:  its lease runs out; the next grant in the study ends it

Nobody takes over a trial that is to be cancelled. One that completes before its worker hears of
the wish is complete.
"""

from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import ColumnElement, Connection, Engine, and_, or_, select, update

from nbtl_search.ledger import ending, ledger, locks, schema
from nbtl_search.postgres.connection import storage_errors

CANCEL: Final = "cancel"
"""Of a trial that is wanted no more; others have 'run'."""

CANCELLED: Final = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """What became of a trial that was to be cancelled; `value` is its best top-1 so far, in %."""

    trial: int
    state: Literal["pruned", "running"]
    """It is running until the next heartbeat of its worker."""
    value: float | None
    best_epoch: int | None


def cancel(engine: Engine, study_id: int, number: int) -> Cancelled | None:
    """Say that a trial is wanted no more, and end it if nobody trains it.

    Returns:
        None where no trial of this number is open.
    """
    trial = schema.trial
    which = (trial.c.study_id == study_id, trial.c.number == number)
    with storage_errors(), engine.begin() as connection:
        # As whoever grants: what it has read as paused, and is about to promote, must not end.
        locks.take_reservations(connection, study_id)
        is_open = connection.execute(
            update(trial)
            .where(*which, trial.c.state.not_in(ledger.TERMINAL))
            .values(desired=CANCEL)
        ).rowcount
        if not is_open:
            return None
        end_unwanted(connection, *which)
        query = select(trial.c.state, trial.c.value, trial.c.best_epoch).where(*which)
        row = connection.execute(query).one()
    return Cancelled(trial=number, state=row.state, value=row.value, best_epoch=row.best_epoch)


def end_unwanted(connection: Connection, *which: ColumnElement[bool]) -> None:
    """End those of these trials that are to be cancelled and that nobody trains.

    A worker whose lease has expired may be well, as after an outage: it is fenced, and stops.
    """
    trial = schema.trial
    is_idle = or_(
        trial.c.state.in_(("waiting", "paused")),
        and_(trial.c.state == "running", trial.c.lease_expires < ledger.NOW),
    )
    ending.prune(connection, *which, trial.c.desired == CANCEL, is_idle, cause=CANCELLED)
