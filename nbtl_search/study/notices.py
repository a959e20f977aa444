"""What people are told of a study, each thing once, whoever notices it first.

A notice is claimed by a row, sent, and marked as sent. Whose claim is older than `_CLAIM_S` and not
sent has died or failed: the next one takes it over, after a pause that doubles. So each is told at
least once, and twice only where somebody dies between sending and marking.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from nbtl_search.study import ledger, records, schema
from nbtl_search.study.records import DEFAULT, TrialRecord
from nbtl_search.study.storage import storage_errors
from nbtl_search.study.store import Study

_CLAIM_S: Final = 60
_LONGEST_S: Final = 86_400
STALL_S: Final = 900.0
_SLOW: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something to tell of a study; `subject` tells two of one kind apart."""

    study: str
    event: str
    subject: str
    text: str
    details: dict[str, Any]


def due(study: Study) -> list[Notice]:
    """Return all that could be told of the study now; what was told before is among it.

    Raises:
        StorageLostError: the database does not answer.
    """
    engine = study.storage.engine
    trials = records.trials(engine, study.id)
    found = [_failed(study, trial) for trial in trials if trial.state == "failed"]
    workers = records.workers(engine, study.id)
    totals = records.totals(engine, study.id, n_workers=len(workers))
    if totals.state == "finished":
        found.append(_finished(study, trials, totals))
    elif totals.state in {"running", "idle"}:
        found += _stalled(study)
    return found


def claim(study: Study, notice: Notice) -> bool:
    """Take it upon us to tell this; False where it was told, or another is at it."""
    table = schema.notice
    row = {"study_id": study.id, "event": notice.event, "subject": notice.subject}
    pause_s = func.least(_LONGEST_S, _CLAIM_S * func.pow(2, table.c.n_tries - 1))
    age_s = func.extract("epoch", ledger.NOW - table.c.claimed_at)
    query = (
        upsert(table)
        .values(row | {"n_tries": 1})
        .on_conflict_do_update(
            index_elements=["study_id", "event", "subject"],
            set_={"n_tries": table.c.n_tries + 1, "claimed_at": ledger.NOW},
            where=(table.c.sent_at.is_(None)) & (age_s > pause_s),
        )
        .returning(table.c.n_tries)
    )
    with storage_errors(), study.storage.engine.begin() as connection:
        return connection.execute(query).scalar() is not None


def mark_sent(study: Study, notice: Notice) -> None:
    """Note that it was told."""
    table = schema.notice.c
    query = update(schema.notice).where(
        table.study_id == study.id, table.event == notice.event, table.subject == notice.subject
    )
    with storage_errors(), study.storage.engine.begin() as connection:
        connection.execute(query.values(sent_at=ledger.NOW))


def was_sent(study: Study, notice: Notice) -> bool:
    """Tell whether somebody has told this."""
    table = schema.notice.c
    query = select(table.sent_at).where(
        table.study_id == study.id, table.event == notice.event, table.subject == notice.subject
    )
    with storage_errors(), study.storage.engine.connect() as connection:
        return connection.execute(query).scalar() is not None


def _failed(study: Study, trial: TrialRecord) -> Notice:
    return Notice(
        study=study.name,
        event="failed",
        subject=str(trial.number),
        text=f"study {study.name}: trial {trial.number} failed ({trial.cause}): {trial.message}",
        details={"trial": trial.number, "cause": trial.cause, "message": trial.message},
    )


def _finished(study: Study, trials: list[TrialRecord], totals: records.Totals) -> Notice:
    ended = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    best = max(ended, key=lambda trial: trial.value or 0.0, default=None)
    default = next((trial for trial in ended if trial.name == DEFAULT), None)
    told = "no trial ran to its end"
    if best is not None:
        told = f"best {best.value:.2f} % (trial {best.number})"
    return Notice(
        study=study.name,
        event="finished",
        subject=str(totals.n_trials),
        text=f"study {study.name} has finished: {told}, {totals.complete} complete, "
        f"{totals.pruned} stopped early, {totals.failed} failed",
        details={
            "n_trials": totals.n_trials,
            "complete": totals.complete,
            "pruned": totals.pruned,
            "failed": totals.failed,
            "best": None if best is None else {"trial": best.number, "value": best.value},
            "default": None if default is None else default.value,
        },
    )


def _stalled(study: Study) -> list[Notice]:
    """Return the notice that nothing has happened for too long, where that is so."""
    last, quiet_s, slowest_s = _quiet(study.storage.engine, study.id)
    limit_s = max(STALL_S, _SLOW * slowest_s)
    if quiet_s < limit_s:
        return []
    minutes = quiet_s / 60
    return [
        Notice(
            study=study.name,
            event="stalled",
            subject=last.isoformat(),
            text=f"study {study.name}: no epoch and no new worker for {minutes:.0f} minutes, and "
            "it is not finished",
            details={"quiet_s": round(quiet_s), "since": last.isoformat()},
        )
    ]


def _quiet(engine: Engine, study_id: int) -> tuple[datetime, float, float]:
    """Return when something happened last, how long ago, and the seconds of the slowest epoch."""
    epoch, trial, worker, study = schema.epoch, schema.trial, schema.worker, schema.study
    of_study = epoch.join(trial)
    recorded = select(func.max(epoch.c.recorded_at)).select_from(of_study)
    slowest = select(func.max(epoch.c.seconds)).select_from(of_study)
    started = select(func.max(worker.c.started_at)).where(worker.c.study_id == study_id)
    last = func.greatest(
        study.c.created_at,
        recorded.where(trial.c.study_id == study_id).scalar_subquery(),
        started.scalar_subquery(),
    )
    query = select(
        last,
        func.extract("epoch", ledger.NOW - last),
        func.coalesce(slowest.where(trial.c.study_id == study_id).scalar_subquery(), 0.0),
    ).where(study.c.study_id == study_id)
    with storage_errors(), engine.connect() as connection:
        row = connection.execute(query).one()
    return row[0].astimezone(UTC), float(row[1]), float(row[2])
