"""Finalisations of a study: its best recipes and the usual practice again, over several seeds.

Two stages, each a study of its own whose trials any worker trains, kills and resumes like others:

* *confirm*: the best trials of the search and the default recipe, each over new seeds, trained on
  train and judged on validation after the last epoch. One run chose them, so each has luck to lose.
* *test*: the winner and the default over further seeds, trained on train and validation. Only
  here the test images are opened, and that is recorded before it happens.

Nobody has to stay up for it: whoever comes first when a stage has ended opens the next one.
In the ledger a finalisation is a row (`nbtl_final`), and its rounds are numbered from 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field
from sqlalchemy import Connection, func, insert, select, update

from nbtl_search.errors import DataError, SpecError, StudyNotFoundError
from nbtl_search.ledger import locks, records, schema
from nbtl_search.ledger.ledger import NOW, TERMINAL, Ledger
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Recipe, Value
from nbtl_search.study import seed_statistics, store
from nbtl_search.study.store import FINAL_MARK, Study, clear_half_made, make_optuna_study

_SEEDS_OF_A_ROUND: Final = 1000  # more than two stages of 100: no two rounds share a seed
Enter = Callable[[Connection, int], None]


class Plan(Value):
    """How many candidates and seeds a finalisation has."""

    n_candidates: int = Field(3, ge=1, le=100, description="best trials of the search")
    n_confirm_seeds: int = Field(4, ge=2, le=100, description="runs of each in the first stage")
    n_test_seeds: int = Field(4, ge=2, le=100, description="runs of winner and default at the end")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A run to be planned."""

    candidate: TrialRecord
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{name_of(self.candidate)}, seed {self.recipe.train.seed}"


def begin(study: Study, changes: Mapping[str, int], *, again: str | None = None) -> Plan:
    """Plan a finalisation, or go on with the one there is.

    Args:
        study: whose search is over or stopped.
        changes: fields of `Plan` that are to differ from the defaults.
        again: why the test images may be read once more, where they have been read.

    Returns:
        The plan of the latest finalisation.

    Raises:
        SpecError: the search is not over, there is another plan already, or the test images have
            been read and `again` is None.
        DataError: there are no test images.
        StudyNotFoundError: no trial has run to its end, or the default recipe was not tried.
    """
    _check(study)
    with storage_errors(), locks.holding_name(study.storage.engine, study.name) as lock:
        # Read under the lock: two commands at once would plan two rounds, and so read the test
        # images twice without anybody having asked for it.
        latest = latest_round(study)
        if latest is not None:
            plan = Plan.parse(latest.plan)
            wanted = plan.replace(**changes)
            ended = has_ended(stage_of(study, latest))
            if again is None or not ended:
                _check_same(study, latest, wanted, plan)
                return plan
        plan = Plan().replace(**changes)
        number = 1 if latest is None else latest.round + 1
        _open_confirm(study, plan, number, again or "", lock=lock)
    return plan


def next_stage(study: Study) -> Study | None:
    """Return the stage that waits for workers; open the second when the first has ended.

    Returns:
        None where nothing is to be done, or the final runs were told to stop.

    Raises:
        StudyNotFoundError: no candidate could be trained.
        StorageError: the database refuses.
    """
    with storage_errors():
        latest = latest_round(study)
        if latest is None:
            return None
        stage = stage_of(study, latest)
        if stage.stage == "confirm" and has_ended(stage):
            with locks.holding_name(study.storage.engine, study.name) as lock:
                # Again, now that nobody else can open it: all idle workers come here at once.
                latest = latest_round(study)
                if latest.test_id is None:
                    _open_test(study, latest, lock=lock)
            stage = stage_of(study, latest_round(study))
    ledger = Ledger(study.storage.engine, stage.id)
    return None if ledger.desired() == "stop" or has_ended(stage) else stage


def candidates(study: Study, *, n: int) -> list[TrialRecord]:
    """Return the default recipe's trial, then the best others that ran to their end.

    Raises:
        StudyNotFoundError: no trial has ended, or the default recipe was not tried.
    """
    trials = records.trials(study.storage.engine, study.id)
    default = records.default_of(trials)
    best = [trial for trial in records.ranked(trials) if trial != default][:n]
    if default is None or not best:
        what = "the default recipe" if default is None else "another recipe than the default"
        message = (
            f"finalising compares with the default recipe, and study {study.name!r} has not "
            f"trained {what} to its end yet; see: nbtl-search status {study.name}"
        )
        raise StudyNotFoundError(message)
    return [default, *best]


def winner_of(study: Study, confirm_id: int, default: int) -> int:
    """Return the candidate with the highest lower confidence bound, of those that ran throughout.

    Raises:
        StudyNotFoundError: not one candidate could be trained with every seed.
    """
    values: dict[int, list[float]] = {}
    broken: set[int] = set()
    for row in runs_of(study, confirm_id):
        if row.state == "complete":
            values.setdefault(row.candidate, []).append(row.value)
        else:
            broken.add(row.candidate)
    whole = {number: found for number, found in values.items() if number not in broken}
    if not whole:
        message = (
            f"a winner must train to its end with every seed, and no candidate of study "
            f"{study.name!r} did; see why in the logs, then run: nbtl-search finalize {study.name} "
            "--again REASON"
        )
        raise StudyNotFoundError(message)
    return seed_statistics.choose(whole, default=default)


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


def open_stage(study: Study) -> Study | None:
    """Return the stage whose runs have not all ended; None where nothing is being finalised."""
    row = latest_round(study)
    if row is None:
        return None
    stage = stage_of(study, row)
    return None if stage.stage == "test" and has_ended(stage) else stage


def has_ended(stage: Study) -> bool:
    """Tell whether every run of a stage has ended."""
    n_done, n_all = counts(stage)
    return n_done >= n_all


def is_done(study: Study, row: Any) -> bool:
    """Tell whether every run of a finalisation has ended."""
    return row.test_id is not None and has_ended(stage_of(study, row))


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


def name_of(trial: TrialRecord) -> str:
    """Return what a candidate is called: the name of its recipe, or its number."""
    return trial.name or f"trial {trial.number}"


def _check(study: Study) -> None:
    if study.stage is not None:
        message = f"a search is finalised, got the final runs {study.name!r}; name its study"
        raise SpecError(message)
    if study.facts.n_test == 0:
        message = (
            f"finalising needs test images, and study {study.name!r} has none; make a study with "
            "a test/ folder, or with data.test_fraction above 0"
        )
        raise DataError(message)
    ledger = Ledger(study.storage.engine, study.id)
    if ledger.desired() != "stop" and not ledger.is_over():
        message = (
            f"a search is over before it is finalised, and study {study.name!r} is not; go on "
            f"with: nbtl-search launch {study.name}, or end it: nbtl-search stop {study.name}"
        )
        raise SpecError(message)


def _check_same(study: Study, latest: Any, wanted: Plan, plan: Plan) -> None:
    if wanted == plan:
        return
    differences = ", ".join(
        f"{key} = {value}" for key, value in plan.plain().items() if wanted.plain()[key] != value
    )
    what = "has read its test images" if latest.test_id is not None else "is being finalised"
    message = (
        f"study {study.name!r} {what} with {differences}; leave the option out, or read the test "
        "images once more, which is recorded, with --again REASON"
    )
    raise SpecError(message)


def _open_confirm(study: Study, plan: Plan, number: int, reason: str, *, lock: Connection) -> None:
    chosen = candidates(study, n=plan.n_candidates)
    runs = list(_runs(study, chosen, _seeds(study, number, 0, plan.n_confirm_seeds)))
    row = {
        "parent_id": study.id,
        "round": number,
        "plan": plan.plain(),
        "reason": reason,
    }

    def enter(connection: Connection, stage_id: int) -> None:
        connection.execute(insert(schema.final).values(row | {"confirm_id": stage_id}))

    _open(study, stage_name(study, "confirm", number), runs, enter, lock=lock)


def _open_test(study: Study, latest: Any, *, lock: Connection) -> None:
    """Choose the winner, and record that the test images are going to be read."""
    plan = Plan.parse(latest.plan)
    trials = {trial.number: trial for trial in records.trials(study.storage.engine, study.id)}
    default = records.default_of(trials.values())
    assert default is not None, "the first stage had it"  # noqa: S101
    winner = winner_of(study, latest.confirm_id, default.number)
    chosen = [trials[number] for number in dict.fromkeys((default.number, winner))]
    seeds = _seeds(study, latest.round, plan.n_confirm_seeds, plan.n_test_seeds)
    runs = list(_runs(study, chosen, seeds, train_on="train+val"))

    def enter(connection: Connection, stage_id: int) -> None:
        final = schema.final
        connection.execute(
            update(final)
            .where(final.c.parent_id == study.id, final.c.round == latest.round)
            # In the transaction that makes the stage: no worker can find a run of it, and open a
            # test image, before the reading is on record.
            .values(winner=winner, test_id=stage_id, test_opened_at=NOW)
        )

    _open(study, stage_name(study, "test", latest.round), runs, enter, lock=lock)


def _seeds(study: Study, number: int, n_before: int, n: int) -> range:
    """Return seeds that neither the search nor another stage or round has."""
    first = study.spec.train.seed + (number - 1) * _SEEDS_OF_A_ROUND + n_before + 1
    return range(first, first + n)


def _runs(
    study: Study, chosen: Sequence[TrialRecord], seeds: range, *, train_on: str = "train"
) -> Iterator[_Run]:
    """Yield all candidates with one seed before any with the next, so that they get on alike."""
    recipes = [
        (trial, records.recipe(study.storage.engine, study.id, trial.number)) for trial in chosen
    ]
    for seed in seeds:
        for trial, recipe in recipes:
            assert recipe is not None, "a record has its recipe"  # noqa: S101
            seeded = recipe.replace(
                train=recipe.train.replace(seed=seed), data=recipe.data.replace(train_on=train_on)
            )
            yield _Run(candidate=trial, recipe=seeded)


def _open(study: Study, name: str, runs: Sequence[_Run], enter: Enter, *, lock: Connection) -> None:
    """Make the study of a stage; it exists from the one transaction that enters it everywhere."""
    storage = study.storage
    clear_half_made(storage, name)
    stage_id = make_optuna_study(storage, name, study.spec)
    rows = [
        {
            "study_id": stage_id,
            "slot": slot,
            "candidate": run.candidate.number,
            "name": run.name,
            "recipe": run.recipe,
        }
        for slot, run in enumerate(runs, start=1)
    ]
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
        connection.execute(insert(schema.final_run), rows)
        enter(connection, stage_id)
