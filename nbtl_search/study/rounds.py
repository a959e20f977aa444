"""The finalisations of a study as the ledger has them: one row a round, two studies of runs."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import func, select

from nbtl_search.spec import Value
from nbtl_search.study import schema, store
from nbtl_search.study.ledger import TERMINAL
from nbtl_search.study.names import FINAL_MARK
from nbtl_search.study.storage import storage_errors
from nbtl_search.study.store import Study


class Plan(Value):
    """How many candidates and seeds a finalisation has."""

    n_candidates: int = Field(3, ge=1, le=100, description="best trials of the search")
    n_confirm_seeds: int = Field(4, ge=2, le=100, description="runs of each in the first stage")
    n_test_seeds: int = Field(4, ge=2, le=100, description="runs of winner and default at the end")


def latest(study: Study) -> Any:
    """Return the row of the latest finalisation, or None."""
    found = every(study)
    return found[-1] if found else None


def every(study: Study) -> Sequence[Any]:
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


def has_ended(stage: Study) -> bool:
    """Tell whether every run of a stage has ended."""
    n_done, n_all = counts(stage)
    return n_done >= n_all


def is_done(study: Study, row: Any) -> bool:
    """Tell whether every run of a finalisation has ended."""
    return row.test_id is not None and has_ended(stage_of(study, row))


def open_stage(study: Study) -> Study | None:
    """Return the stage whose runs have not all ended; None where nothing is being finalised."""
    row = latest(study)
    if row is None:
        return None
    stage = stage_of(study, row)
    return None if stage.stage == "test" and has_ended(stage) else stage


def runs(study: Study, stage_id: int) -> Sequence[Any]:
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
            plan.c.recipe,
            trial.c.trial_id,
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
