"""Extension of a study's budget, while it runs or after it has ended."""

from datetime import datetime
from typing import Any

from nbtl_search.errors import SpecError
from nbtl_search.ledger import ledger, locks
from nbtl_search.ledger.ledger import Spent
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Budget
from nbtl_search.study import stages, work
from nbtl_search.study.store import SPEC, Study


def extend(
    study: Study,
    *,
    n_trials: int | None = None,
    epochs: int | None = None,
    gpu_h: float | None = None,
    deadline: datetime | None = None,
) -> Budget:
    """Set limits of the budget, each to what it is in all; the others stay. Return the new budget.

    Trials that have ended stay as they are, also those that the end of the search stopped.

    Args:
        study: a search, whether it runs, is over, paused or stopped.
        n_trials: trials in all.
        epochs: epochs in all.
        gpu_h: hours of all workers together.
        deadline: when the search ends; without a time zone, local time.

    Raises:
        SpecError: no limit is given, one is below what was spent, or final runs are at work.
        StorageError: the database refuses.
    """
    if (n_trials, epochs, gpu_h, deadline) == (None, None, None, None):
        message = (
            "an extension needs a limit, got none; give --trials, --epochs, --gpu-h, --deadline"
        )
        raise SpecError(message)
    stages.check_is_search(study, verb="extended")

    def decide(spent: Spent) -> Budget:
        changes: dict[str, Any] = {"n_trials": n_trials, "epochs": epochs, "gpu_h": gpu_h}
        if deadline is not None:
            changes["wall_clock_h"] = _hours(deadline.astimezone(), spent)
        _refuse_less("trials", n_trials, spent.n_trials)
        _refuse_less("epochs", epochs, spent.epochs)
        _refuse_less("gpu-h", gpu_h, spent.slot_s / 3600)
        given = {key: value for key, value in changes.items() if value is not None}
        return spent.budget.replace(**given)

    # The row first: it is what workers go by. The specification says it to people; killed in
    # between, the same command again makes it say so.
    storage = study.storage
    with storage_errors(), locks.holding_name(storage.engine, study.name) as lock:
        # Under the lock that a finalisation begins under, too.
        stage = work.open_stage(study)
        if stage is not None:
            verb = "ablate" if stage.stage == "ablation" else "finalize"
            message = (
                "a search is extended before or after its final runs and ablations, and "
                f"{stage.name!r} has not ended; let it end: nbtl-search {verb} {study.name}"
            )
            raise SpecError(message)
        budget = ledger.set_budget(storage.engine, study.id, decide)
        locks.make_sure(lock)
        spec = study.spec.replace(budget=budget)
        storage.optuna.set_study_user_attr(study.id, SPEC, spec.model_dump_json())
    return budget


def _hours(deadline: datetime, spent: Spent) -> float:
    if deadline <= spent.now:
        message = f"--deadline must be in the future, got {deadline:%F %R %Z}"
        raise SpecError(message)
    return (deadline - spent.since).total_seconds() / 3600


def _refuse_less(what: str, wanted: float | None, spent: float) -> None:
    if wanted is not None and wanted < spent:
        message = f"--{what} must be at least what was spent, {spent:.6g}, got {wanted}"
        raise SpecError(message)
