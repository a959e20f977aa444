"""The ledger of a study: what is wanted, what the budget allows, and what has been trained.

With it the jobs of a cluster's queue that were submitted for the study. The database's clock
decides (`clock_timestamp()`), never a worker's.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, final

from sqlalchemy import ColumnElement, Engine, Select, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import IntegrityError

from nbtl_search.ledger import locks, schema
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Budget, Epoch, StudySpec

TERMINAL: Final = ("complete", "pruned", "failed")
INFEASIBLE: Final = ("oom", "diverged", "infeasible")
"""Causes that are the recipe's and no machine's: another try would end as the first did."""

NOW: Final = func.clock_timestamp()


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """How a trial ended; accuracy in percent."""

    trial_id: int
    number: int
    state: str
    value: float | None
    cause: str | None


@final
class Ledger:
    """The ledger of one study."""

    def __init__(self, engine: Engine, study_id: int) -> None:
        self._engine = engine
        self._study_id = study_id

    def trial_ids(self) -> set[int]:
        """Return Optuna's ids of the trials that the ledger knows."""
        query = select(schema.trial.c.trial_id).where(schema.trial.c.study_id == self._study_id)
        with storage_errors(), self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def epochs(self, trial_id: int) -> list[Epoch]:
        """Return the epochs of a trial that are recorded, in order."""
        names = list(Epoch.model_fields)
        query = (
            select(*(schema.epoch.c[name] for name in names))
            .where(schema.epoch.c.trial_id == trial_id)
            .order_by(schema.epoch.c.epoch)
        )
        with storage_errors(), self._engine.connect() as connection:
            return [Epoch.parse(dict(row)) for row in connection.execute(query).mappings()]

    def unnotified(self) -> list[FinishedTrial]:
        """Return the finished trials of whose end Optuna may not have been notified."""
        trial = schema.trial
        query = finished_trials().where(trial.c.study_id == self._study_id, ~trial.c.notified)
        with storage_errors(), self._engine.connect() as connection:
            return [FinishedTrial(**row) for row in connection.execute(query).mappings()]

    def mark_notified(self, trial_id: int) -> None:
        """Note that Optuna knows how the trial ended."""
        query = (
            update(schema.trial).where(schema.trial.c.trial_id == trial_id).values(notified=True)
        )
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(query)

    def want(self, desired: str) -> None:
        """Say what is wanted of the study; its workers hear it with their next heartbeat."""
        query = update(schema.study).where(schema.study.c.study_id == self._study_id)
        with storage_errors(), self._engine.begin() as connection:
            connection.execute(query.values(desired=desired))

    def desired(self) -> str:
        """Return what is wanted of the study; a deleted study wants its workers to stop."""
        query = select(schema.study.c.desired).where(schema.study.c.study_id == self._study_id)
        with storage_errors(), self._engine.connect() as connection:
            return connection.execute(query).scalar() or "stop"

    def is_stopped(self) -> bool:
        """Tell whether the study was told to stop."""
        return self.desired() == "stop"

    def goes_on(self) -> bool:
        """Tell whether trials may still be trained: the study is neither over nor told to stop."""
        return not self.is_stopped() and not self.is_over()

    def is_over(self) -> bool:
        """Tell whether no trial is open and the budget allows no new one."""
        trial, study = schema.trial, schema.study
        is_open = exists().where(trial.c.study_id == self._study_id, trial.c.state.not_in(TERMINAL))
        has_slot = exists().where(*has_budget(self._study_id), study.c.started < study.c.n_trials)
        query = select(or_(is_open, has_slot, ~wants_to_run(self._study_id)))
        with storage_errors(), self._engine.connect() as connection:
            return not connection.execute(query).scalar_one()

    def heartbeat(
        self, worker: str, *, host: str, pid: int, device: str, state: str, trial_number: int | None
    ) -> None:
        """Show that the worker is alive, and what it does; of a deleted study nobody asks."""
        row = {
            "worker": worker,
            "study_id": self._study_id,
            "host": host,
            "pid": pid,
            "device": device,
            "state": state,
            "trial_number": trial_number,
        }
        query = upsert(schema.worker).values(row)
        query = query.on_conflict_do_update(
            index_elements=["worker"],
            set_={
                "study_id": self._study_id,
                "state": state,
                "trial_number": trial_number,
                "device": device,
                "seen_at": NOW,
            },
        )
        # The study's row may go between any two heartbeats; the worker hears of it from its lease.
        with suppress(IntegrityError), storage_errors(), self._engine.begin() as connection:
            connection.execute(query)


def finished_trials() -> Select[Any]:
    """Return the query of `FinishedTrial`s, of every study."""
    columns = [schema.trial.c[field.name] for field in fields(FinishedTrial)]
    return select(*columns).where(schema.trial.c.state.in_(TERMINAL))


def wants_to_run(study_id: int) -> ColumnElement[bool]:
    """Return the condition that the study is neither paused nor stopped."""
    study = schema.study
    query = select(study.c.desired).where(study.c.study_id == study_id)
    return query.scalar_subquery() == "run"


def has_budget(study_id: int) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the study's row under which epochs may be granted."""
    study = schema.study
    # Summed at each grant and kept nowhere: a counter would be one more thing that a kill between
    # two writes could make wrong.
    elapsed_s = func.extract("epoch", NOW - study.c.created_at)
    left = epochs_left(study_id)
    return (
        study.c.study_id == study_id,
        study.c.desired == "run",
        ~study.c.closed,
        or_(left.is_(None), left > 0),
        or_(study.c.budget_slot_s.is_(None), slot_s_spent(study_id) < study.c.budget_slot_s),
        or_(study.c.budget_wall_s.is_(None), elapsed_s < study.c.budget_wall_s),
    )


def slot_s_spent(study_id: int) -> ColumnElement[float]:
    """Return how many seconds the epochs of all trials took."""
    trial, epoch = schema.trial, schema.epoch
    return (
        select(func.coalesce(func.sum(epoch.c.seconds), 0.0))
        .select_from(epoch.join(trial))
        .where(trial.c.study_id == study_id)
        .scalar_subquery()
    )


def epochs_left(study_id: int) -> ColumnElement[Any]:
    """Return how many epochs may still be granted, for the study's row; null without a limit."""
    return schema.study.c.budget_epochs - epochs_spent(study_id)


def epochs_spent(study_id: int) -> ColumnElement[int]:
    """Return how many epochs were granted, or had to be trained again."""
    trial, attempt = schema.trial, schema.attempt
    of_study = trial.c.study_id == study_id
    granted = select(func.coalesce(func.sum(trial.c.granted), 0)).where(of_study)
    repeated = (
        select(func.coalesce(func.sum(attempt.c.n_repeated), 0))
        .select_from(attempt.join(trial))
        .where(of_study)
    )
    return granted.scalar_subquery() + repeated.scalar_subquery()


def register(engine: Engine, study_id: int, spec: StudySpec, *, n_first: int) -> None:
    """Insert the study's row: from here on the study exists; so many recipes wait in it."""
    row = {
        "study_id": study_id,
        "name": spec.name,
        "fingerprint": spec.fingerprint(),
        "n_first": n_first,
        **_columns_of(spec.budget),
    }
    with storage_errors(), engine.begin() as connection:
        connection.execute(insert(schema.study).values(row))


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a study has taken of its budget, since when its clock runs, and what it says now."""

    budget: Budget
    n_trials: int
    epochs: int
    slot_s: float
    since: datetime
    now: datetime


def set_budget(engine: Engine, study_id: int, decide: Callable[[Spent], Budget]) -> Budget:
    """Give the study another budget; where it had ended for want of one, it goes on.

    Nothing is granted meanwhile, so that what `decide` is told stays true.
    """
    study = schema.study
    query = select(
        study,
        epochs_spent(study_id).label("epochs"),
        slot_s_spent(study_id).label("slot_s"),
        NOW.label("now"),
    )
    with storage_errors(), engine.begin() as connection:
        locks.take_reservations(connection, study_id)
        row = connection.execute(query.where(study.c.study_id == study_id)).one()
        spent = Spent(
            budget=Budget(
                n_trials=row.n_trials,
                epochs=row.budget_epochs,
                gpu_h=None if row.budget_slot_s is None else row.budget_slot_s / 3600,
                wall_clock_h=None if row.budget_wall_s is None else row.budget_wall_s / 3600,
            ),
            n_trials=row.started,
            epochs=row.epochs,
            slot_s=row.slot_s,
            since=row.created_at,
            now=row.now,
        )
        budget = decide(spent)
        connection.execute(
            update(study)
            .where(study.c.study_id == study_id)
            .values(closed=False, **_columns_of(budget))
        )
        return budget


def _columns_of(budget: Budget) -> dict[str, Any]:
    return {
        "n_trials": budget.n_trials,
        "budget_epochs": budget.epochs,
        "budget_slot_s": None if budget.gpu_h is None else budget.gpu_h * 3600,
        "budget_wall_s": None if budget.wall_clock_h is None else budget.wall_clock_h * 3600,
    }


@dataclass(frozen=True, kw_only=True)
class Job:
    """One submission: a job, or an array of them."""

    job_id: str
    cluster: str
    n_tasks: int
    folder: str
    submitted_at: datetime


def record_job(
    engine: Engine, study_id: int, *, job_id: str, cluster: str, n_tasks: int, folder: Path
) -> None:
    """Note a submission."""
    row = {
        "study_id": study_id,
        "job_id": job_id,
        "cluster": cluster,
        "n_tasks": n_tasks,
        "folder": str(folder),
    }
    with storage_errors(), engine.begin() as connection:
        connection.execute(upsert(schema.job).values(row).on_conflict_do_nothing())


def submitted_jobs(engine: Engine, study_id: int) -> list[Job]:
    """Return the study's submissions, the oldest first."""
    job = schema.job.c
    query = (
        select(job.job_id, job.cluster, job.n_tasks, job.folder, job.submitted_at)
        .where(job.study_id == study_id)
        .order_by(job.submitted_at)
    )
    with storage_errors(), engine.connect() as connection:
        return [Job(**row) for row in connection.execute(query).mappings()]
