"""Ablations of a study's recipe: what each group of its dials is worth, over new seeds.

A search of a few dozen trials cannot say which of its dials were needed. An ablation trains the
recommended recipe, the same without one group of dials at a time (they have the values of the
default recipe), and the default, all with the same seeds, on train, judged on validation after the
last epoch. The test images are not opened.

Seeds are spent where they tell something. Everything runs with two; after that one more seed at a
time goes to the recipe and to those that cannot be told from it yet. To look again and again, and
to stop where the interval has just left zero, would find differences where there are none; so
before the last seed a difference counts only at a stricter level (Haybittle 1971; Peto and others
1976).

An ablation is a study of its own, as the stages of final runs are (`stages`), and whoever comes
first when its runs have ended plans the next. In the ledger it is a row (`nbtl_ablation`), and its
rounds are numbered from 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field
from sqlalchemy import Connection, insert, select, update

from nbtl_search import space
from nbtl_search.errors import SpecError, StudyNotFoundError
from nbtl_search.evidence import noise
from nbtl_search.evidence.noise import SeedNoise
from nbtl_search.ledger import locks, records, schema
from nbtl_search.ledger.ledger import TERMINAL, Ledger
from nbtl_search.ledger.recommendation import recommend
from nbtl_search.ledger.records import TrialRecord
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec import Dials, Recipe, Value
from nbtl_search.spec.ablation import Ablation, AblationRun, Need, Worth
from nbtl_search.spec.verdict import Interval
from nbtl_search.study import stages, store
from nbtl_search.study.stages import PlannedRun
from nbtl_search.study.store import Study

N_SEEDS: Final = 4
"""Runs of a recipe at most, where nothing else is asked for."""

USEFUL: Final = 0.5
"""Points: what lies within them around zero is worth no further seed."""

_N_FIRST_SEEDS: Final = 2
_EARLY: Final = 0.99
"""The confidence at which a difference counts before the last seed; then it is 95 %."""

# Neither the search, nor final runs, nor repeats have such seeds.
_FIRST_SEED: Final = 2_000_000
_SEEDS_OF_A_ROUND: Final = 1000


class Variant(Value):
    """A recipe of an ablation: the whole one, one without a group, or the default."""

    name: str
    dials: Dials


class Part(Value):
    """A group of dials, and the variant without it."""

    group: str
    along: tuple[str, ...] = ()
    variant: int = Field(ge=1)


class Plan(Value):
    """What an ablation compares; its runs are numbered by the variants' places."""

    trial: int = Field(ge=0, description="of the search, whose recipe it is")
    n_seeds: int = Field(N_SEEDS, ge=2, le=100, description="runs of a variant, at most")
    variants: tuple[Variant, ...] = Field(description="the whole recipe first, the default last")
    parts: tuple[Part, ...]


def begin(study: Study, *, trial: int | None = None, n_seeds: int | None = None) -> None:
    """Plan an ablation, or go on with the one there is.

    Another one begins where the last has ended and was of another recipe.

    Args:
        study: whose search is over or stopped.
        trial: whose recipe is looked into; by default the recommended one.
        n_seeds: runs of each variant at most; by default what it was, or `N_SEEDS`.

    Raises:
        SpecError: the search is not over, the recipe is the default, or an ablation of another
            recipe has not ended.
        StudyNotFoundError: no trial has run to its end, or not this one, or the default recipe was
            not tried.
    """
    stages.check_is_search(study, verb="ablated")
    stages.check_is_over(study, verb="ablated")
    with storage_errors(), locks.holding_name(study.storage.engine, study.name) as lock:
        latest = latest_round(study)
        if latest is not None and _goes_on(study, latest, trial):
            _set_seeds(study, latest, n_seeds, lock=lock)
            return
        plan = _plan(study, trial, N_SEEDS if n_seeds is None else n_seeds)
        _open(study, plan, 1 if latest is None else latest.round + 1, lock=lock)


def next_stage(study: Study) -> Study | None:
    """Return the ablation that waits for workers; plan its next runs where all have ended.

    Returns:
        None where nothing is to be done, or it was told to stop.

    Raises:
        StorageError: the database refuses.
    """
    with storage_errors():
        latest = latest_round(study)
        if latest is None:
            return None
        if _runs_to_add(study, latest):
            with locks.holding_name(study.storage.engine, study.name) as lock:
                # Again, now that nobody else can do it: all idle workers come here at once.
                runs = _runs_to_add(study, latest)
                if runs:
                    stages.add(stage_of(study, latest), runs, lock=lock)
        stage = open_stage(study)
    if stage is None or Ledger(study.storage.engine, stage.id).is_stopped():
        return None
    return stage


def open_stage(study: Study) -> Study | None:
    """Return the ablation that has not ended; None where there is none."""
    latest = latest_round(study)
    return None if latest is None or _is_done(study, latest) else stage_of(study, latest)


def ablation_of(study: Study) -> Ablation | None:
    """Return where the latest ablation of a study stands; None if there is none.

    Raises:
        StorageError: the database refuses or does not answer.
    """
    latest = latest_round(study)
    if latest is None:
        return None
    is_done = _is_done(study, latest)  # first: what has ended by then is in the rows below
    found = _compared(study, latest)
    plan = found.plan
    return Ablation(
        round=latest.round,
        study=_name(study, latest.round),
        trial=plan.trial,
        name=plan.variants[0].name,
        n_seeds=plan.n_seeds,
        is_done=is_done,
        useful=USEFUL,
        recipe=noise.summary(found.values[0].values()),
        groups=tuple(map(found.worth, plan.parts)),
        total=found.worth(Part(group="all", variant=len(plan.variants) - 1)),
        runs=tuple(_run(row, plan) for row in found.rows),
    )


def latest_round(study: Study) -> Any:
    """Return the row of the latest ablation, or None."""
    table = schema.ablation
    query = select(table).where(table.c.parent_id == study.id).order_by(table.c.round.desc())
    with storage_errors(), study.storage.engine.connect() as connection:
        return connection.execute(query.limit(1)).one_or_none()


def stage_of(study: Study, row: Any) -> Study:
    """Open the study that holds the runs of an ablation."""
    return store.open_study(study.storage, _name(study, row.round))


def _name(study: Study, number: int) -> str:
    return stages.stage_name(study, "ablation", number)


# -- what is compared -----------------------------------------------------------------------


def _goes_on(study: Study, latest: Any, trial: int | None) -> bool:
    """Tell whether the latest ablation is the one that is asked for."""
    had = Plan.parse(latest.plan).trial
    is_open = not _is_done(study, latest)
    if is_open and trial is None:
        return True
    wanted = _chosen(study, trial)[0].number
    if is_open and wanted != had:
        message = (
            f"an ablation ends before another recipe's begins, and that of trial {had} of study "
            f"{study.name!r} has not; finish it first: nbtl-search ablate {study.name}"
        )
        raise SpecError(message)
    return wanted == had


def _plan(study: Study, trial: int | None, n_seeds: int) -> Plan:
    chosen, default = _chosen(study, trial)
    searched = space.build_for(study.spec.search, study.facts)
    removals = space.removals(chosen.dials, default.dials, space=searched)
    if not removals:
        message = (
            f"an ablation needs a recipe that differs from the default, and {_said(chosen)} of "
            f"study {study.name!r} does not; name another with --trial N"
        )
        raise SpecError(message)
    whole, last = space.effective(chosen.dials), space.effective(default.dials)
    names = {one.dials: f"without {' and '.join((one.group, *one.along))}" for one in removals}
    # Without the only group, the default is what is left.
    names = {whole: stages.name_of(chosen)} | names
    names.pop(last, None)
    names[last] = records.DEFAULT
    order = list(names)
    return Plan(
        trial=chosen.number,
        n_seeds=n_seeds,
        variants=tuple(Variant(name=name, dials=dials) for dials, name in names.items()),
        parts=tuple(
            Part(group=one.group, along=one.along, variant=order.index(one.dials))
            for one in removals
        ),
    )


def _chosen(study: Study, number: int | None) -> tuple[TrialRecord, TrialRecord]:
    """Return the trial whose recipe is looked into, and that of the default."""
    trials = records.trials(study.storage.engine, study.id)
    recommendation = recommend(trials, n_images=study.facts.n_val)
    default = recommendation.default
    found = [trial for trial, _ in recommendation.ranked]
    firsts = {trial.number: trial.repeat_of for trial in trials if trial.repeat_of is not None}
    wanted = [one for one in found if number is None or one.number == firsts.get(number, number)]
    if default is None or not wanted:
        what = "a recipe" if number is None else f"trial {number}"
        what = "the default recipe" if default is None else f"{what} to its end"
        message = (
            f"an ablation compares a recipe with the default, and study {study.name!r} has not "
            f"trained {what} yet; see: nbtl-search status {study.name}"
        )
        raise StudyNotFoundError(message)
    return wanted[0], default


def _said(trial: TrialRecord) -> str:
    return f"trial {trial.number} ({trial.name})" if trial.name else f"trial {trial.number}"


def _open(study: Study, plan: Plan, number: int, *, lock: Connection) -> None:
    recipe = records.recipe(study.storage.engine, study.id, plan.trial)
    assert recipe is not None, "a record has its recipe"  # noqa: S101
    first = study.spec.train.seed + _FIRST_SEED + (number - 1) * _SEEDS_OF_A_ROUND
    runs = [
        run
        for seed in range(first, first + _N_FIRST_SEEDS)
        for run in _runs(plan, range(len(plan.variants)), recipe, seed=seed)
    ]

    def enter(connection: Connection, stage_id: int) -> None:
        row = {"parent_id": study.id, "round": number, "plan": plan.plain(), "study_id": stage_id}
        connection.execute(insert(schema.ablation).values(row))

    stages.make(study, _name(study, number), runs, enter, lock=lock)


def _set_seeds(study: Study, latest: Any, n_seeds: int | None, *, lock: Connection) -> None:
    plan = Plan.parse(latest.plan)
    if n_seeds in {None, plan.n_seeds}:
        return
    table = schema.ablation.c
    query = update(schema.ablation).where(table.parent_id == study.id, table.round == latest.round)
    locks.make_sure(lock)
    with study.storage.engine.begin() as connection:
        connection.execute(query.values(plan=plan.replace(n_seeds=n_seeds).plain()))


# -- which runs are next --------------------------------------------------------------------


def _is_done(study: Study, row: Any) -> bool:
    return stages.has_ended(stage_of(study, row)) and not _next_runs(study, row)


def _runs_to_add(study: Study, row: Any) -> list[PlannedRun]:
    """Return the runs that come next; none before all that are planned have ended."""
    return _next_runs(study, row) if stages.has_ended(stage_of(study, row)) else []


def _next_runs(study: Study, row: Any) -> list[PlannedRun]:
    found = _compared(study, row)
    seeds = [run.recipe.train.seed for run in found.rows if run.candidate == 0]
    if len(seeds) >= found.plan.n_seeds or found.n_failed(0):
        return []
    untold = [number for number in range(1, len(found.plan.variants)) if not found.is_told(number)]
    # Where nothing is left to compare with it, the recipe needs no further run of its own.
    chosen = [0, *untold] if untold else []
    return list(_runs(found.plan, chosen, found.rows[0].recipe, seed=seeds[-1] + 1))


def _runs(
    plan: Plan, variants: Sequence[int], recipe: Recipe, *, seed: int
) -> Iterator[PlannedRun]:
    seeded = recipe.replace(train=recipe.train.replace(seed=seed))
    for number in variants:
        variant = plan.variants[number]
        yield PlannedRun(
            candidate=number,
            name=f"{variant.name}, seed {seed}",
            recipe=seeded.replace(dials=variant.dials),
        )


# -- what they say --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """What the runs of an ablation have given so far."""

    plan: Plan
    rows: Sequence[Any]
    values: Mapping[int, Mapping[int, float]]
    """Validation top-1 by variant and seed, of the runs that ended well."""
    noise: SeedNoise

    def gain(self, variant: int, *, confidence: float = 0.95) -> Interval | None:
        """Return the whole recipe minus a variant."""
        ours, theirs = self.values[0], self.values[variant]
        return noise.gain(ours, theirs, noise=self.noise, confidence=confidence)

    def n_failed(self, variant: int) -> int:
        """Count the runs of a variant that ended without a result."""
        return sum(
            row.candidate == variant and row.state in TERMINAL and row.state != "complete"
            for row in self.rows
        )

    def is_told(self, variant: int) -> bool:
        """Tell whether further runs of a variant would be of no use."""
        early = self.gain(variant, confidence=_EARLY)
        if early is None or self.n_failed(variant):
            return True
        return not early.is_tie or _need(self.gain(variant)) == "not needed"

    def worth(self, part: Part) -> Worth:
        """Return what a group of dials is worth."""
        ours, theirs = (dict(self.plan.variants[number].dials) for number in (0, part.variant))
        gain = self.gain(part.variant)
        return Worth(
            group=part.group,
            along=part.along,
            variant=part.variant,
            changes={key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]},
            without=noise.summary(self.values[part.variant].values()),
            n_failed=self.n_failed(part.variant),
            gain=gain,
            need=_need(gain),
        )


def _compared(study: Study, row: Any) -> _Comparison:
    plan, rows = Plan.parse(row.plan), stages.runs_of(study, row.study_id)
    values: dict[int, dict[int, float]] = {number: {} for number in range(len(plan.variants))}
    for run in rows:
        if run.state == "complete":
            values[run.candidate][run.recipe.train.seed] = run.value
    pooled = noise.seed_noise(
        [list(found.values()) for found in values.values()], n_images=study.facts.n_val
    )
    return _Comparison(plan=plan, rows=rows, values=values, noise=pooled)


def _need(gain: Interval | None) -> Need:
    if gain is None:
        return "cannot be told"
    if not gain.is_tie:
        return "needed" if gain.mean > 0 else "harmful"
    return "not needed" if gain.low >= -USEFUL and gain.high <= USEFUL else "cannot be told"


def _run(row: Any, plan: Plan) -> AblationRun:
    return AblationRun(
        **stages.progress_of(row),
        variant=row.candidate,
        name=plan.variants[row.candidate].name,
        val_top1=row.value if row.state == "complete" else None,
    )
