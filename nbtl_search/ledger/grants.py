"""Grants of epochs: what a free worker trains next, by where every trial stands and what is left.

All of it is read, and the search is ended, under the lock of a study's grants: no trial is paused,
promoted or begun by a decision that another has overtaken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, select, update

from nbtl_search.ledger import cancellation, ending, ledger, locks, promotion, repeats, schema
from nbtl_search.ledger.promotion import NEW, Ladder, Room, Standing


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a free worker trains: a paused trial, a recipe once more, or else a new trial."""

    room: Room
    promoted: Standing | None = None
    repeated: Standing | None = None
    """The first trial of the recipe."""


def choose(connection: Connection, study_id: int, ladder: Ladder) -> Choice | None:
    """Return what a free worker trains; where nothing is to be granted, end the search."""
    locks.take_reservations(connection, study_id)
    cancellation.end_unwanted(connection, schema.trial.c.study_id == study_id)
    left = room(connection, study_id)
    every = standings(connection, study_id, ladder.rungs)
    chosen = None if left is None else promotion.choose(every, left, ladder)
    if left is None or chosen is None:
        end_search(connection, study_id, every, left)
        return None
    if chosen == NEW:
        return Choice(room=left, repeated=repeats.worth_repeating(every, left, ladder))
    return Choice(room=left, promoted=next(one for one in every if one.trial_id == chosen))


def room(connection: Connection, study_id: int) -> Room | None:
    """Return what the budget still has; None where it is spent or the study is not to run."""
    study = schema.study
    has_slot = study.c.started < study.c.n_trials
    query = select(
        has_slot.label("has_slot"), ledger.epochs_left(study_id).label("epochs"), study.c.n_first
    )
    row = connection.execute(query.where(*ledger.has_budget(study_id))).mappings().one_or_none()
    return None if row is None else Room(**row)


def standings(connection: Connection, study_id: int, rungs: Sequence[int]) -> list[Standing]:
    """Return where every trial stands, by number."""
    trial, epoch = schema.trial, schema.epoch
    # No epoch after the last rung is looked at: of long schedules that is most of them.
    until_rung = and_(epoch.c.trial_id == trial.c.trial_id, epoch.c.epoch <= max(rungs, default=0))
    best_at = [
        func.max(epoch.c.val_top1).filter(epoch.c.epoch <= rung).label(f"best_at_{rung}")
        for rung in rungs
    ]
    query = (
        select(
            trial.c.trial_id,
            trial.c.number,
            trial.c.state,
            trial.c.protected,
            trial.c.audited,
            trial.c.granted,
            trial.c.value,
            trial.c.repeat_of,
            trial.c.cause,
            func.coalesce(func.max(epoch.c.epoch), 0).label("reached"),
            *best_at,
        )
        .select_from(trial.outerjoin(epoch, until_rung))
        .where(trial.c.study_id == study_id)
        .group_by(trial.c.trial_id)
        .order_by(trial.c.number)
    )
    return [
        Standing(
            trial_id=row.trial_id,
            number=row.number,
            state=row.state,
            protected=row.protected,
            audited=row.audited,
            granted=row.granted,
            value=row.value,
            repeat_of=row.repeat_of,
            cause=row.cause,
            best_at=tuple(
                best if rung <= row.reached else None
                for rung, best in zip(rungs, row[-len(rungs) :] if rungs else (), strict=True)
            ),
        )
        for row in connection.execute(query)
    ]


def end_search(
    connection: Connection, study_id: int, standings: Sequence[Standing], room: Room | None
) -> None:
    """End what is paused, now that nothing is to be granted; not while a trial may still run.

    A trial that runs or waits may be what promotes another, and lets nothing end. A study that is
    not to run keeps what is paused.
    """
    study, trial = schema.study, schema.trial
    if any(one.state in {"running", "waiting"} for one in standings):
        return
    ending.prune(
        connection,
        trial.c.study_id == study_id,
        trial.c.state == "paused",
        ledger.wants_to_run(study_id),
    )
    if room is not None and room.has_slot:
        connection.execute(update(study).where(study.c.study_id == study_id).values(closed=True))
