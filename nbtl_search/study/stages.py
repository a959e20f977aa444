"""Stages of final runs as the database has them: rounds, planned runs, and how they stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from nbtl_search.errors import SpecError
from nbtl_search.ledger import locks, schema
from nbtl_search.ledger.ledger import TERMINAL, Ledger
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import Candidate
from nbtl_search.study import store
from nbtl_search.study.averages import start_of
from nbtl_search.study.store import FINAL_MARK, Study

Enter = Callable[[Connection, int], None]
"""Enters a stage's id where else it must stand, in the transaction that makes it."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What a slot of a stage trains."""

    candidate: int
    """A trial of the search; in an ablation, a recipe of its plan."""
    averaged: tuple[int, ...] = ()
    """The trials whose weights it averages; () if it trains."""
    name: str
    recipe: Recipe


def check_is_search(study: Study, *, verb: str) -> None:
    """Refuse final runs.

    Raises:
        SpecError: the study is no search.
    """
    if study.stage is not None:
        message = f"a search is {verb}, got the final runs {study.name!r}; name its study"
        raise SpecError(message)


def check_is_over(study: Study, *, verb: str) -> None:
    """Refuse a search that goes on.

    Raises:
        SpecError: it is neither over nor told to stop.
    """
    if Ledger(study.storage.engine, study.id).goes_on():
        message = (
            f"a search is over before it is {verb}, and study {study.name!r} is not; go on "
            f"with: nbtl-search launch {study.name}, or end it: nbtl-search stop {study.name}"
        )
        raise SpecError(message)


def make(
    study: Study, name: str, runs: Sequence[PlannedRun], enter: Enter, *, lock: Connection
) -> None:
    """Make the study of a stage; it exists from the one transaction that enters it everywhere."""
    storage = study.storage
    store.clear_half_made(storage, name)
    stage_id = store.make_optuna_study(storage, name, study.spec)
    row = {
        "study_id": stage_id,
        "name": name,
        "fingerprint": study.spec.fingerprint(),
        "n_trials": len(runs),
    }
    # Optuna's study has been made outside our transaction. Without the lock by now, another may
    # have cleared it as half-made, and would make its own; so nothing of ours is written then.
    locks.make_sure(lock)
    with storage.engine.begin() as connection:
        connection.execute(insert(schema.study).values(row))
        connection.execute(insert(schema.final_run), _rows(stage_id, runs, first_slot=1))
        enter(connection, stage_id)


def add(stage: Study, runs: Sequence[PlannedRun], *, lock: Connection) -> None:
    """Add runs to a stage."""
    study = schema.study
    _, n_before = counts(stage)
    locks.make_sure(lock)
    with stage.storage.engine.begin() as connection:
        connection.execute(insert(schema.final_run), _rows(stage.id, runs, first_slot=n_before + 1))
        # With the rows: a slot that is open has its run.
        connection.execute(
            update(study).where(study.c.study_id == stage.id).values(n_trials=n_before + len(runs))
        )


def _rows(stage_id: int, runs: Sequence[PlannedRun], *, first_slot: int) -> list[dict[str, Any]]:
    return [
        {
            "study_id": stage_id,
            "slot": slot,
            "candidate": run.candidate,
            "averaged": list(run.averaged) or None,
            "name": run.name,
            "recipe": run.recipe,
        }
        for slot, run in enumerate(runs, start=first_slot)
    ]


def latest_round(study: Study) -> Any:
    """Return the row of the latest finalisation, or None."""
    found = every_round(study)
    return found[-1] if found else None


def every_round(study: Study) -> Sequence[Any]:
    """Return the rows of all finalisations, in order."""
    final = schema.final
    query = select(final).where(final.c.parent_id == study.id).order_by(final.c.round)
    with storage_errors(), study.storage.engine.connect() as connection:
        return connection.execute(query).all()


def stage_of(study: Study, row: Any) -> Study:
    """Open the study that holds the runs of the latest stage of a finalisation."""
    stage = "confirm" if row.test_id is None else "test"
    return store.open_study(study.storage, stage_name(study, stage, row.round))


def stage_name(study: Study, stage: str, number: int) -> str:
    """Return the name of the study that holds the runs of a stage."""
    return f"{study.name}{FINAL_MARK}{stage}-{number}"


def confirm_stage_of(stage: Study) -> Study:
    """Open the confirm stage of the round that a test stage belongs to."""
    name = stage.name.replace(f"{FINAL_MARK}test-", f"{FINAL_MARK}confirm-")
    return store.open_study(stage.storage, name)


def has_ended(stage: Study) -> bool:
    """Tell whether every run has ended that is planned for a stage so far."""
    n_done, n_all = counts(stage)
    return n_done >= n_all


def counts(stage: Study) -> tuple[int, int]:
    """Return how many runs of a stage have ended, and how many there are."""
    trial, study = schema.trial, schema.study
    n_ended = (
        select(func.count())
        .where(trial.c.study_id == stage.id, trial.c.state.in_(TERMINAL))
        .scalar_subquery()
    )
    query = select(n_ended, study.c.n_trials).where(study.c.study_id == stage.id)
    with storage_errors(), stage.storage.engine.connect() as connection:
        n_done, n_all = connection.execute(query).one()
    return n_done, n_all


def runs_of(study: Study, stage_id: int) -> Sequence[Any]:
    """Return the planned runs of a stage in order, with the trial and the result of each begun."""
    plan, trial, result = schema.final_run, schema.trial, schema.final_result
    epoch = schema.epoch
    trained = (
        select(
            epoch.c.trial_id,
            func.count().label("n_epochs"),
            func.sum(epoch.c.seconds).label("seconds"),
        )
        .select_from(epoch.join(trial))
        .where(trial.c.study_id == stage_id)
        .group_by(epoch.c.trial_id)
        .subquery()
    )
    scores = [column for column in result.c if column.name not in {"trial_id", "predictions"}]
    query = (
        select(
            plan.c.slot,
            plan.c.candidate,
            plan.c.averaged,
            plan.c.recipe,
            trial.c.trial_id,
            trial.c.number,
            trial.c.state,
            trial.c.value,
            trial.c.attempt,
            trained.c.n_epochs,
            trained.c.seconds,
            *scores,
        )
        .select_from(
            plan.outerjoin(
                trial, (trial.c.study_id == plan.c.study_id) & (trial.c.slot == plan.c.slot)
            )
            .outerjoin(trained, trained.c.trial_id == trial.c.trial_id)
            .outerjoin(result, result.c.trial_id == trial.c.trial_id)
        )
        .where(plan.c.study_id == stage_id)
        .order_by(plan.c.slot)
    )
    with storage_errors(), study.storage.engine.connect() as connection:
        return connection.execute(query).all()


def progress_of(row: Any) -> dict[str, Any]:
    """Return how far a planned run is, as the values that show one have it."""
    return {
        "number": row.slot - 1 if row.number is None else row.number,
        "seed": row.recipe.train.seed,
        "state": row.state or "waiting",
        "n_epochs": row.n_epochs or 0,
        "seconds": row.seconds or 0.0,
        "n_attempts": row.attempt or 0,
    }


def trials_of(row: Any) -> Candidate:
    """Return the trial whose recipe a planned run trains, or those whose weights it averages."""
    return tuple(row.averaged or (row.candidate,))


@dataclass(frozen=True, kw_only=True)
class FinalTask:
    """What a final run has to do with weights."""

    members: tuple[int, ...] = ()
    """The numbers of the runs whose weights it averages; () if it trains."""
    is_kept: bool = False
    """Whether its own weights are left in a folder."""


def task_of(stage: Study, number: int) -> FinalTask:
    """Return what a run of a stage has to do with weights.

    Raises:
        StorageError: the database refuses.
    """
    runs = runs_of(stage, stage.id)
    mine = next(run for run in runs if run.number == number)
    same_seed = [
        run
        for run in runs
        if run.averaged is None and run.recipe.train.seed == mine.recipe.train.seed
    ]
    if mine.averaged is not None:
        numbers = {run.candidate: run.number for run in same_seed}
        members = tuple(numbers[trial] for trial in mine.averaged)
        # Averages of the first stage are made of its runs, never of one another.
        return FinalTask(members=members, is_kept=stage.stage == "test")
    if stage.stage == "ablation":
        return FinalTask()
    start = start_of(mine.recipe.dials)
    n_alike = sum(start_of(run.recipe.dials) == start for run in same_seed)
    return FinalTask(is_kept=stage.stage == "test" or (n_alike > 1 and _averages(stage)))


def _averages(stage: Study) -> bool:
    """Tell whether averages of weights are candidates of a confirm stage's round."""
    query = select(schema.final.c.plan["averages"].as_boolean()).where(
        schema.final.c.confirm_id == stage.id
    )
    with storage_errors(), stage.storage.engine.connect() as connection:
        return connection.execute(query).scalar() is not False


def name_of(trial: TrialRecord) -> str:
    """Return what a candidate is called: the name of its recipe, or its number."""
    return trial.name or f"trial {trial.number}"


def name_of_candidate(trials: Sequence[TrialRecord]) -> str:
    """Return what one trial is called, or the average of several trials' weights."""
    names = ", ".join(map(name_of, trials))
    return names if len(trials) == 1 else f"average of {names}"
