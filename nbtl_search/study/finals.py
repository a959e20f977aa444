"""Finalisations of a study: its best recipes and the usual practice again, over several seeds.

Two stages, each a study of its own whose trials any worker trains, kills and resumes like others:

* *confirm*: the best recipes of the search and the default, each over new seeds, trained on train
  and judged on validation after the last epoch. The search chose them, so each has luck to lose.
  Seeds are spent one at a time: who can hardly be the best any more gets none, and when one
  candidate is left that is the end.
* *test*: the winner and the default over further seeds, trained on train and validation. Only
  here the test images are opened, and that is recorded before it happens. The number of seeds is
  fixed before: stopping where the test images look good would make the interval a lie.

When the runs of a stage have ended, averages of their weights are added to it (`averages`): in the
first stage as further candidates, in the second where such a candidate has won.

Nobody has to stay up for it: whoever comes first when a stage has ended opens the next one.
In the ledger a finalisation is a row (`nbtl_final`), and its rounds are numbered from 1.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from pydantic import Field
from sqlalchemy import Connection, insert, update

from nbtl_search.errors import DataError, SpecError, StudyNotFoundError
from nbtl_search.ledger import locks, records, schema
from nbtl_search.ledger.ledger import NOW, Ledger
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Recipe, Value
from nbtl_search.spec.verdict import Candidate
from nbtl_search.study import averages, judgement, stages
from nbtl_search.study.judgement import Judgement
from nbtl_search.study.stages import PlannedRun
from nbtl_search.study.store import Study

_SEEDS_OF_A_ROUND: Final = 1000
"""More than two stages of 100 have: no two rounds share a seed."""

_N_FIRST_SEEDS: Final = 2
"""Runs that every candidate of the first stage has, and by which averages are chosen."""


class Plan(Value):
    """How many candidates and seeds a finalisation has."""

    n_candidates: int = Field(3, ge=1, le=100, description="best trials of the search")
    n_confirm_seeds: int = Field(
        4, ge=2, le=100, description="runs of each in the first stage, at most"
    )
    n_test_seeds: int = Field(4, ge=2, le=100, description="runs of winner and default at the end")
    averages: bool = Field(
        True,
        description="whether averages of their weights are candidates too",
    )


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
        latest = stages.latest_round(study)
        if latest is not None:
            plan = Plan.parse(latest.plan)
            wanted = plan.replace(**changes)
            stands = stages.has_ended(stages.stage_of(study, latest))
            ended = stands and not _runs_to_add(study, latest)
            if again is None or not ended:
                _check_same(study, latest, wanted, plan)
                return plan
        plan = Plan().replace(**changes)
        number = 1 if latest is None else latest.round + 1
        _open_confirm(study, plan, number, again or "", lock=lock)
    return plan


def next_stage(study: Study) -> Study | None:
    """Return the stage that waits for workers; add to it or open the second where it has ended.

    Returns:
        None where nothing is to be done, or the final runs were told to stop.

    Raises:
        StudyNotFoundError: no candidate could be trained.
        StorageError: the database refuses.
    """
    with storage_errors():
        latest = stages.latest_round(study)
        if latest is None or _is_stopped(study, latest):
            return None
        while _is_to_go_on(study, latest):
            with locks.holding_name(study.storage.engine, study.name) as lock:
                # Again, now that nobody else can do it: all idle workers come here at once.
                latest = stages.latest_round(study)
                if _is_to_go_on(study, latest) and not _is_stopped(study, latest):
                    _go_on(study, latest, lock=lock)
            latest = stages.latest_round(study)
            if _is_stopped(study, latest):
                return None
        stage = stages.stage_of(study, latest)
    return None if _is_stopped(study, latest) or is_done(study, latest) else stage


def _is_stopped(study: Study, row: Any) -> bool:
    """Tell whether the stage that a finalisation is at was told to stop."""
    stage = stages.stage_of(study, row)
    return Ledger(study.storage.engine, stage.id).is_stopped()


def candidates(study: Study, *, n: int) -> list[TrialRecord]:
    """Return the default recipe's trial, then the best others that ran to their end.

    Raises:
        StudyNotFoundError: no trial has ended, or the default recipe was not tried.
    """
    trials = records.trials(study.storage.engine, study.id)
    found = recommend(trials, n_images=study.facts.n_val)
    default = found.default
    best = [trial for trial, _ in found.ranked if trial != default][:n]
    if default is None or not best:
        what = "the default recipe" if default is None else "another recipe than the default"
        message = (
            f"finalising compares with the default recipe, and study {study.name!r} has not "
            f"trained {what} to its end yet; see: nbtl-search status {study.name}"
        )
        raise StudyNotFoundError(message)
    return [default, *best]


def winner_of(study: Study, confirm_id: int, default: int) -> Candidate:
    """Return the most valuable candidate, of those that could be trained with every seed.

    Raises:
        StudyNotFoundError: not one candidate could.
    """
    trials = records.trials(study.storage.engine, study.id)
    winner = _judgement(study, stages.runs_of(study, confirm_id), trials, default=default).winner
    if winner is None:
        message = (
            f"a winner must train to its end with every seed, and no candidate of study "
            f"{study.name!r} did; see why in the logs, then run: nbtl-search finalize {study.name} "
            "--again REASON"
        )
        raise StudyNotFoundError(message)
    return winner


def _judgement(
    study: Study, rows: Sequence[Any], trials: Iterable[TrialRecord], *, default: int
) -> Judgement:
    runs = [
        judgement.Run(
            candidate=stages.trials_of(row),
            state=row.state,
            value=row.value,
        )
        for row in rows
    ]
    return judgement.judge(runs, trials, default=default, n_images=study.facts.n_val)


def open_stage(study: Study) -> Study | None:
    """Return the stage whose runs have not all ended; None where nothing is being finalised."""
    row = stages.latest_round(study)
    if row is None:
        return None
    return None if is_done(study, row) else stages.stage_of(study, row)


def is_done(study: Study, row: Any) -> bool:
    """Tell whether every run of a finalisation has ended."""
    is_tested = row.test_id is not None and stages.has_ended(stages.stage_of(study, row))
    return is_tested and not _runs_to_add(study, row)


def _check(study: Study) -> None:
    stages.check_is_search(study, verb="finalised")
    if study.facts.n_test == 0:
        message = (
            f"finalising needs test images, and study {study.name!r} has none; make a study with "
            "a test/ folder, or with data.test_fraction above 0"
        )
        raise DataError(message)
    stages.check_is_over(study, verb="finalised")


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
    runs = list(_runs(study, chosen, _seeds(study, number, 0, _N_FIRST_SEEDS)))
    row = {
        "parent_id": study.id,
        "round": number,
        "plan": plan.plain(),
        "reason": reason,
    }

    def enter(connection: Connection, stage_id: int) -> None:
        connection.execute(insert(schema.final).values(row | {"confirm_id": stage_id}))

    stages.make(study, stages.stage_name(study, "confirm", number), runs, enter, lock=lock)


def _is_to_go_on(study: Study, latest: Any) -> bool:
    """Tell whether all planned runs have ended, and more is to be planned."""
    if not stages.has_ended(stages.stage_of(study, latest)):
        return False
    return latest.test_id is None or bool(_runs_to_add(study, latest))


def _go_on(study: Study, latest: Any, *, lock: Connection) -> None:
    runs = _runs_to_add(study, latest)
    if runs:
        stages.add(stages.stage_of(study, latest), runs, lock=lock)
    else:
        _open_test(study, latest, lock=lock)


def _runs_to_add(study: Study, row: Any) -> list[PlannedRun]:
    """Return the runs that come next in a stage whose runs have all ended."""
    plan = Plan.parse(row.plan)
    rows = stages.runs_of(study, row.confirm_id if row.test_id is None else row.test_id)
    trials = {trial.number: trial for trial in records.trials(study.storage.engine, study.id)}
    seeds = list(dict.fromkeys(each.recipe.train.seed for each in rows))
    if row.test_id is not None:
        return [] if row.averaged is None else _averaged(rows, trials, seeds, [row.averaged])
    first = [each for each in rows if each.recipe.train.seed in seeds[:_N_FIRST_SEEDS]]
    chosen = _next_averages(first) if plan.averages else []
    added = _averaged(first, trials, seeds[:_N_FIRST_SEEDS], chosen)
    if added:
        return added
    still_in = _judgement(study, rows, trials.values(), default=rows[0].candidate).still_in()
    # The averages that are still in follow their recipes, seed by seed.
    added = _averaged(rows, trials, seeds, [one for one in still_in if len(one) > 1])
    if added or len(still_in) < 2 or len(seeds) == plan.n_confirm_seeds:
        return added
    members = dict.fromkeys(number for one in still_in for number in one)
    seed = range(seeds[-1] + 1, seeds[-1] + 2)
    return list(_runs(study, [trials[number] for number in members], seed))


def _averaged(
    rows: Sequence[Any],
    trials: Mapping[int, TrialRecord],
    seeds: Sequence[int],
    wanted: Sequence[Sequence[int]],
) -> list[PlannedRun]:
    """Return averages that are wanted with these seeds and can be made, and are not planned yet."""
    trained = {(run.candidate, run.recipe.train.seed): run for run in rows if not run.averaged}
    planned = {(stages.trials_of(run), run.recipe.train.seed) for run in rows}
    return [
        _run([trials[number] for number in average], trained[average[0], seed].recipe)
        for seed in seeds
        for average in wanted
        if (tuple(average), seed) not in planned
        and all(_is_whole(trained.get((number, seed))) for number in average)
    ]


def _is_whole(run: Any) -> bool:
    return run is not None and run.state == "complete"


def _next_averages(runs: Sequence[Any]) -> list[Candidate]:
    values: dict[Candidate, list[float]] = {}
    for run in runs:
        found = values.setdefault(stages.trials_of(run), [])
        found += [run.value] if run.state == "complete" else []
    n_seeds = len({run.recipe.train.seed for run in runs})
    means = {key: averages.mean_of(found, n=n_seeds) for key, found in values.items()}
    dials = {
        run.candidate: run.recipe.dials for run in runs if math.isfinite(means[run.candidate,])
    }
    return averages.next_averages(dials, means)


def _open_test(study: Study, latest: Any, *, lock: Connection) -> None:
    """Choose the winner, and record that the test images are going to be read."""
    plan = Plan.parse(latest.plan)
    trials = {trial.number: trial for trial in records.trials(study.storage.engine, study.id)}
    default = records.default_of(trials.values())
    assert default is not None, "the first stage had it"  # noqa: S101
    winner = winner_of(study, latest.confirm_id, default.number)
    chosen = [trials[number] for number in dict.fromkeys((default.number, *winner))]
    seeds = _seeds(study, latest.round, plan.n_confirm_seeds, plan.n_test_seeds)
    runs = list(_runs(study, chosen, seeds, train_on="train+val"))

    def enter(connection: Connection, stage_id: int) -> None:
        final = schema.final
        connection.execute(
            update(final)
            .where(final.c.parent_id == study.id, final.c.round == latest.round)
            # In the transaction that makes the stage: no worker can find a run of it, and open a
            # test image, before the reading is on record.
            .values(
                winner=winner[0],
                averaged=winner if len(winner) > 1 else None,
                test_id=stage_id,
                test_opened_at=NOW,
            )
        )

    stages.make(study, stages.stage_name(study, "test", latest.round), runs, enter, lock=lock)


def _seeds(study: Study, number: int, n_before: int, n: int) -> range:
    """Return seeds that neither the search nor another stage or round has."""
    first = study.spec.train.seed + (number - 1) * _SEEDS_OF_A_ROUND + n_before + 1
    return range(first, first + n)


def _runs(
    study: Study, chosen: Sequence[TrialRecord], seeds: range, *, train_on: str = "train"
) -> Iterator[PlannedRun]:
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
            yield _run([trial], seeded)


def _run(trials: Sequence[TrialRecord], recipe: Recipe) -> PlannedRun:
    """Return a run of one trial's recipe, or of the average of several trials' weights."""
    return PlannedRun(
        candidate=trials[0].number,
        averaged=tuple(trial.number for trial in trials) if len(trials) > 1 else (),
        name=f"{stages.name_of_candidate(trials)}, seed {recipe.train.seed}",
        recipe=recipe,
    )
