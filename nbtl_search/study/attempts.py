"""The attempts at a trial: who trained it, when, and why that ended."""

from typing import Any

from sqlalchemy import Connection, insert, update

from nbtl_search.study import ledger, schema
from nbtl_search.study.lease import Lease


def open_attempt(connection: Connection, row: Any) -> Lease:
    """Note the attempt that begins with this row of a trial; return its lease."""
    connection.execute(
        insert(schema.attempt).values(
            trial_id=row.trial_id, attempt=row.attempt, token=row.token, worker=row.worker
        )
    )
    return Lease(
        trial_id=row.trial_id,
        number=row.number,
        name=row.name,
        protected=row.protected,
        recipe_json=row.recipe,
        token=row.token,
        attempt=row.attempt,
        worker=row.worker,
    )


def close_attempts(connection: Connection, trial_id: int, cause: str, message: str) -> None:
    """Note why the open attempts at a trial ended."""
    attempt = schema.attempt
    connection.execute(
        update(attempt)
        .where(attempt.c.trial_id == trial_id, attempt.c.ended_at.is_(None))
        .values(ended_at=ledger.NOW, cause=cause, message=message)
    )
