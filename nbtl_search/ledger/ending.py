"""Ending of trials, and of the attempts at them, in the ledger's rows."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, func, select, update

from nbtl_search.ledger import ledger, schema


def prune(connection: Connection, *which: ColumnElement[bool], cause: str | None = None) -> None:
    """End trials before the end of their schedules, each with its best epoch so far as value.

    Args:
        connection: in a transaction.
        which: conditions on the rows of trials; nobody may be training them.
        cause: why, where it is not that others were better.
    """
    trial, epoch = schema.trial, schema.epoch
    best = (
        select(epoch.c.val_top1, epoch.c.epoch)
        .where(epoch.c.trial_id == trial.c.trial_id)
        .order_by(epoch.c.val_top1.desc().nulls_last(), epoch.c.epoch)
        .limit(1)
    )
    query = (
        update(trial)
        .where(*which)
        .values(
            state="pruned",
            cause=cause,
            granted=n_recorded(trial.c.trial_id).scalar_subquery(),
            value=best.with_only_columns(epoch.c.val_top1).scalar_subquery(),
            best_epoch=best.with_only_columns(epoch.c.epoch).scalar_subquery(),
            lease_expires=None,
            finished_at=ledger.NOW,
        )
        .returning(trial.c.trial_id)
    )
    ended = connection.execute(query).scalars().all()
    if ended:
        close_attempts(connection, ended, cause or "pruned", "")


def close_attempts(
    connection: Connection, trial_ids: Sequence[int], cause: str, message: str
) -> None:
    """Note why the open attempts at these trials ended."""
    attempt = schema.attempt
    connection.execute(
        update(attempt)
        .where(attempt.c.trial_id.in_(trial_ids), attempt.c.ended_at.is_(None))
        .values(ended_at=ledger.NOW, cause=cause, message=message)
    )


def n_recorded(trial_id: int | ColumnElement[int]) -> Select[Any]:
    """Return the query of how many epochs of a trial are recorded."""
    return select(func.count()).where(schema.epoch.c.trial_id == trial_id)
