"""Records of what the ledger knows of a study, for status, tables and figures."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

from sqlalchemy import Engine, and_, func, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from nbtl_search.ledger import schema
from nbtl_search.ledger.ledger import (
    INFEASIBLE,
    NOW,
    FinishedTrial,
    Ledger,
    finished_trials,
)
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Dials, Epoch, Recipe

DEFAULT: Final = "default"  # the name of the baseline among the known recipes
ALIVE_S: Final = 90.0  # a worker that has shown itself within this time counts as alive


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial as the ledger has it; accuracies in percent."""

    trial_id: int
    number: int
    name: str
    state: str
    value: float | None
    best_epoch: int | None
    n_epochs: int
    last_top1: float | None
    seconds: float
    n_attempts: int
    """Those that a promotion began are no new attempts."""
    cause: str | None
    message: str | None
    worker: str | None
    started_at: datetime
    finished_at: datetime | None
    dials: Dials
    repeat_of: int | None = None
    """The number of the trial whose recipe it trains with another seed."""
    audited: bool = False
    """It ran to its end whatever a rung said."""


@dataclass(frozen=True, kw_only=True)
class WorkerRecord:
    """One worker that has shown itself lately."""

    worker: str
    host: str
    pid: int
    device: str
    state: str
    trial_number: int | None
    seen_s: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """The counts of a study; `waiting` are all trials that are neither open nor ended."""

    state: str
    n_trials: int
    complete: int
    pruned: int
    running: int
    paused: int
    waiting: int
    failed: int
    epochs_spent: int
    seconds_spent: float


def trials(engine: Engine, study_id: int) -> list[TrialRecord]:
    """Return every trial of the study that has started, by number."""
    trial, epoch = schema.trial, schema.epoch
    trained = (
        select(
            epoch.c.trial_id,
            func.count().label("n_epochs"),
            func.sum(epoch.c.seconds).label("seconds"),
            func.max(epoch.c.epoch).label("last"),
        )
        .group_by(epoch.c.trial_id)
        .subquery()
    )
    attempt = schema.attempt
    n_promotions = (
        select(func.count())
        .where(
            attempt.c.trial_id == trial.c.trial_id,
            attempt.c.cause == "paused",
            attempt.c.attempt < trial.c.attempt,
        )
        .scalar_subquery()
    )
    columns = [column for column in trial.c if column is not trial.c.recipe]
    dials = type_coerce(trial.c.recipe, JSONB)["dials"]  # the rest of a recipe is the study's
    last = and_(epoch.c.trial_id == trial.c.trial_id, epoch.c.epoch == trained.c.last)
    query = (
        select(
            *columns,
            dials.label("dials"),
            n_promotions.label("n_promotions"),
            trained.c.n_epochs,
            trained.c.seconds,
            epoch.c.val_top1.label("last_top1"),
        )
        .select_from(
            trial.outerjoin(trained, trained.c.trial_id == trial.c.trial_id).outerjoin(epoch, last)
        )
        .where(trial.c.study_id == study_id)
        .order_by(trial.c.number)
    )
    with storage_errors(), engine.connect() as connection:
        return [_trial(row) for row in connection.execute(query)]


def finished(engine: Engine, study_id: int) -> list[FinishedTrial]:
    """Return the trials that have finished, by number."""
    trial = schema.trial.c
    query = finished_trials().where(trial.study_id == study_id).order_by(trial.number)
    with storage_errors(), engine.connect() as connection:
        return [FinishedTrial(**row) for row in connection.execute(query).mappings()]


def paused(engine: Engine, study_id: int) -> list[int]:
    """Return the numbers of the paused trials, the least accurate first."""
    trial, epoch = schema.trial, schema.epoch
    query = (
        select(trial.c.number)
        .select_from(trial.outerjoin(epoch))
        .where(trial.c.study_id == study_id, trial.c.state == "paused")
        .group_by(trial.c.trial_id)
        .order_by(func.max(epoch.c.val_top1).nulls_first(), trial.c.number.desc())
    )
    with storage_errors(), engine.connect() as connection:
        return list(connection.execute(query).scalars())


def _trial(row: Any) -> TrialRecord:
    return TrialRecord(
        trial_id=row.trial_id,
        number=row.number,
        name=row.name,
        state=row.state,
        value=row.value,
        best_epoch=row.best_epoch,
        n_epochs=row.n_epochs or 0,
        last_top1=row.last_top1,
        seconds=row.seconds or 0.0,
        n_attempts=row.attempt - row.n_promotions,
        cause=row.cause,
        message=row.message,
        worker=row.worker if row.state == "running" else None,
        started_at=row.started_at,
        finished_at=row.finished_at,
        dials=Dials.parse(row.dials),
        repeat_of=row.repeat_of,
        audited=row.audited,
    )


def recipe(engine: Engine, study_id: int, number: int) -> Recipe | None:
    """Return the whole recipe of a trial, or None if it has not started."""
    trial = schema.trial
    query = select(trial.c.recipe).where(trial.c.study_id == study_id, trial.c.number == number)
    with storage_errors(), engine.connect() as connection:
        return connection.execute(query).scalar()


def curves(engine: Engine, study_id: int) -> dict[int, list[Epoch]]:
    """Return the epochs of every trial, by the trial's number."""
    trial, epoch = schema.trial, schema.epoch
    names = list(Epoch.model_fields)
    query = (
        select(trial.c.number, *(epoch.c[name] for name in names))
        .select_from(epoch.join(trial))
        .where(trial.c.study_id == study_id)
        .order_by(trial.c.number, epoch.c.epoch)
    )
    result: dict[int, list[Epoch]] = {}
    with storage_errors(), engine.connect() as connection:
        for row in connection.execute(query).mappings():
            values = {name: row[name] for name in names}
            result.setdefault(row["number"], []).append(Epoch.parse(values))
    return result


_Ended = TypeVar("_Ended", TrialRecord, FinishedTrial)


def ranked(trials: Iterable[_Ended]) -> list[_Ended]:
    """Return the trials that ran to their end, the most accurate first; of equal ones the earliest.

    Equal accuracies are common: few validation images leave few values. The number decides, so
    that every command names the same trial as the best.
    """
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    return sorted(complete, key=lambda trial: (-(trial.value or 0.0), trial.number))


def by_recipe(trials: Iterable[TrialRecord]) -> dict[int, list[TrialRecord]]:
    """Return the trials that ran to their end, by the number of the first of the same recipe.

    A recipe that could not be trained with one of its seeds is left out.
    """
    found: dict[int, list[TrialRecord]] = {}
    broken = set()
    for trial in trials:
        first = trial.number if trial.repeat_of is None else trial.repeat_of
        if trial.state == "complete" and trial.value is not None:
            found.setdefault(first, []).append(trial)
        elif trial.cause in INFEASIBLE:
            broken.add(first)
    return {first: whole for first, whole in found.items() if first not in broken}


def default_of(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """Return the trial of the default recipe, if it has started."""
    return next((trial for trial in trials if trial.name == DEFAULT), None)


def workers(engine: Engine, study_id: int) -> list[WorkerRecord]:
    """Return the workers that have shown themselves in the last `ALIVE_S` seconds."""
    worker = schema.worker
    seen_s = func.extract("epoch", NOW - worker.c.seen_at)
    query = (
        select(worker, seen_s.label("seen_s"))
        .where(worker.c.study_id == study_id, worker.c.state != "gone", seen_s < ALIVE_S)
        .order_by(worker.c.started_at)
    )
    with storage_errors(), engine.connect() as connection:
        return [
            WorkerRecord(
                worker=row.worker,
                host=row.host,
                pid=row.pid,
                device=row.device,
                state=row.state,
                trial_number=row.trial_number,
                seen_s=float(row.seen_s),
            )
            for row in connection.execute(query)
        ]


def totals(engine: Engine, study_id: int, *, n_workers: int) -> Totals:
    """Count the trials by state and what they have cost.

    Args:
        engine: of the ledger.
        study_id: of the study.
        n_workers: workers alive, by which a study that could run is told from one that does.
    """
    trial, epoch, study = schema.trial, schema.epoch, schema.study
    counts = select(trial.c.state, func.count()).where(trial.c.study_id == study_id)
    spent = (
        select(func.count(), func.coalesce(func.sum(epoch.c.seconds), 0.0))
        .select_from(epoch.join(trial))
        .where(trial.c.study_id == study_id)
    )
    budget = select(study.c.n_trials, study.c.desired).where(study.c.study_id == study_id)
    with storage_errors(), engine.connect() as connection:
        by_state = {row[0]: row[1] for row in connection.execute(counts.group_by(trial.c.state))}
        epochs_spent, seconds_spent = connection.execute(spent).one()
        n_trials, desired = connection.execute(budget).one()
    complete, pruned, failed, running, paused = (
        by_state.get(state, 0) for state in ("complete", "pruned", "failed", "running", "paused")
    )
    return Totals(
        state=_state(desired, n_workers, is_over=Ledger(engine, study_id).is_over()),
        n_trials=n_trials,
        complete=complete,
        pruned=pruned,
        running=running,
        paused=paused,
        waiting=n_trials - complete - pruned - failed - running - paused,
        failed=failed,
        epochs_spent=epochs_spent,
        seconds_spent=seconds_spent,
    )


def _state(desired: str, n_workers: int, *, is_over: bool) -> str:
    if desired != "run":
        return {"pause": "paused", "stop": "stopped"}[desired]
    if is_over:
        return "finished"
    return "running" if n_workers else "idle"
