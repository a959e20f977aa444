"""Replay searches from recorded tables: does advice help, and does the memory of other studies?

    python benchmarks/advice_replay.py [--trials 12] [--seeds 20]

Each search proposes a point as a worker's would (known recipes, advice, start-up design, TPE); the
nearest recipe of the table that was not tried yet takes its place, with the accuracy that really
came of it. A search sees one training seed; the recipe that it ends with is judged by the other
seed as well, which it has not seen. Every arm has the same table, budget and search seeds.
Diagnoses are those recorded beside the tables. Prints Markdown.
"""

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from nbtl_search import space as spaces
from nbtl_search.advice import EarlierRecipe, EarlierStudy, advise
from nbtl_search.space import Space
from nbtl_search.spec import (
    Advised,
    Budget,
    DataSettings,
    Diagnosis,
    Dials,
    KnownRecipe,
    ModelSettings,
    SearchSettings,
    StudySpec,
)
from nbtl_search.spec.study import shipped_study
from nbtl_search.study.sampling import sampler

TABLES = Path(__file__).with_name("tables")
N_EARLIER = 3
ARMS = {
    "default first": "the default recipe, then the search",
    "both forms": "the shipped study for folders: default and one form of each regime",
    "table 7": "default, then advice from the diagnosis",
    "memory": "default, then the best recipes of the other datasets",
    "advice": "default, then table 7 and memory, as `create` does it",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """The recorded recipes of one dataset."""

    name: str
    about: Mapping[str, Any]
    dials: tuple[Dials, ...]
    top1: tuple[tuple[float, ...], ...]
    """Best epoch of each recipe, by training seed."""
    diagnosis: Diagnosis
    space: Space


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One replayed search."""

    best: tuple[float, ...]
    """The best accuracy so far, after each trial."""
    unseen: float | None
    """Accuracy of its recipe with the training seeds that it did not see."""


def main() -> None:
    """Replay every arm on every table, and print what came of it."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=20, help="search seeds, per training seed")
    options = parser.parse_args()
    tables = [_read(file) for file in sorted(TABLES.glob("*.json")) if "diagnosis" not in file.stem]
    for table in tables:
        others = [other for other in tables if other.name != table.name]
        _print_table(table, _replayed(table, others, options), options)


def _read(file: Path) -> Table:
    plain = json.loads(file.read_text("utf-8"))
    diagnosis = Diagnosis.parse_json(file.with_suffix(".diagnosis.json").read_text("utf-8"))
    rows = plain["rows"]
    return Table(
        name=file.stem,
        about=plain["about"],
        dials=tuple(Dials.parse(row["dials"]) for row in rows),
        top1=tuple(tuple(max(curve) for curve in row["val_top1"]) for row in rows),
        diagnosis=diagnosis,
        space=spaces.build(SearchSettings(space="paper"), n_blocks=plain["about"]["n_blocks"]),
    )


def _replayed(
    table: Table, others: Sequence[Table], options: argparse.Namespace
) -> dict[str, list[Outcome]]:
    outcomes: dict[str, list[Outcome]] = {arm: [] for arm in ARMS}
    for training_seed in range(len(table.top1[0])):
        for seed in range(options.seeds):
            for arm, found in outcomes.items():
                spec = _spec(table, arm, seed=seed, n_trials=options.trials)
                advice = _advice(table, others, arm, spec)
                found.append(_search(table, spec.replace(advice=advice), training_seed))
    return outcomes


def _spec(table: Table, arm: str, *, seed: int, n_trials: int) -> StudySpec:
    known = [KnownRecipe.parse(recipe) for recipe in shipped_study("folder")["search"]["known"]]
    return StudySpec(
        name=table.name,
        data=DataSettings(dataset=table.name),
        model=ModelSettings(name=table.about["model"]),
        search=SearchSettings(seed=seed, known=tuple(known if arm == "both forms" else known[:1])),
        budget=Budget(n_trials=n_trials),
    )


def _advice(table: Table, others: Sequence[Table], arm: str, spec: StudySpec) -> Advised | None:
    if arm in {"default first", "both forms"}:
        return None
    diagnosis = table.diagnosis
    if arm == "memory":  # without the accuracies nothing is concluded; closeness needs them
        advice = _advised(table, others, spec, diagnosis)
        kept = [recipe for recipe in advice.recipes if recipe.name.startswith("warm-start-")]
        return Advised(recipes=tuple(kept))
    return _advised(table, others if arm == "advice" else (), spec, diagnosis)


def _advised(
    table: Table, others: Sequence[Table], spec: StudySpec, diagnosis: Diagnosis
) -> Advised:
    return advise(
        diagnosis,
        space=table.space,
        known=spec.search.known,
        n_trials=spec.budget.n_trials,
        earlier=[_earlier(other) for other in others],
    )


def _earlier(table: Table) -> EarlierStudy:
    """Return what a finished study of the whole table would be earlier for: training seed 0."""
    ranked = sorted(range(len(table.dials)), key=lambda row: (-table.top1[row][0], row))
    recipes = [
        EarlierRecipe(
            trial=row,
            top1=table.top1[row][0],
            gain=table.top1[row][0] - table.top1[0][0],
            dials=table.dials[row].model_dump(),
        )
        for row in ranked[:N_EARLIER]
    ]
    return EarlierStudy(
        study=table.name,
        diagnosis=table.diagnosis,
        model=table.about["model"],
        image_px=table.about["image_px"],
        recipes=tuple(recipes),
    )


def _search(table: Table, spec: StudySpec, training_seed: int) -> Outcome:
    """Run one search on the table, one trial at a time."""
    advice = spec.advice or Advised()
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    known = [
        spaces.known_dials(recipe, space=table.space)
        for recipe in (*spec.search.known, *advice.recipes)
    ]
    n_design = max(0, spec.search.n_startup - len(advice.recipes))
    design = spaces.design(table.space, n=n_design, seed=spec.search.seed, prior=advice.prior)
    tried: list[int] = []
    for slot in range(spec.budget.n_trials):
        study.sampler = sampler(spec, slot=slot)
        if slot < len(known):
            wanted = known[slot]
        else:
            if slot - len(known) < len(design):
                study.enqueue_trial(design[slot - len(known)])
            proposed = study.ask()
            wanted = spaces.suggest(table.space, proposed)
            study.tell(proposed, state=optuna.trial.TrialState.FAIL)  # samplers do not look at it
        row = min(
            (row for row in range(len(table.dials)) if row not in tried),
            key=lambda row: distance(table.space, wanted, table.dials[row]),
        )
        _tell(study, table, row, training_seed)
        tried.append(row)
    best = max(tried, key=lambda row: table.top1[row][training_seed])
    unseen = [v for seed, v in enumerate(table.top1[best]) if seed != training_seed]
    values = [table.top1[row][training_seed] for row in tried]
    return Outcome(
        best=tuple(max(values[: n + 1]) for n in range(len(values))),
        unseen=statistics.fmean(unseen) if unseen else None,
    )


def _tell(study: optuna.Study, table: Table, row: int, training_seed: int) -> None:
    study.enqueue_trial(spaces.params_of(table.space, table.dials[row]))
    trial = study.ask()
    spaces.suggest(table.space, trial)
    study.tell(trial, table.top1[row][training_seed])


def distance(space: Space, a: Dials, b: Dials) -> float:
    """Return how far two recipes lie apart: each searched dial from 0 to 1, as it is searched."""
    left, right = _places(space, a), _places(space, b)
    gaps = [
        1.0
        if (left[name] is None) != (right[name] is None)
        else (left[name] or 0) - (right[name] or 0)
        for name in left
    ]
    return math.hypot(*gaps)


def _places(space: Space, dials: Dials) -> dict[str, float | None]:
    values = dials.model_dump()
    places: dict[str, float | None] = {}
    for row in space.rows:
        active = row.when is None or row.when.holds(values)
        places[row.name] = _place(row.domain, values[row.name]) if active else None
    return places


def _place(domain: spaces.Domain, value: float) -> float:
    assert not isinstance(domain, spaces.Choice)  # noqa: S101
    if isinstance(domain, spaces.Float) and domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return (value - domain.low) / max(domain.high - domain.low, 1)


def _print_table(
    table: Table, outcomes: Mapping[str, Sequence[Outcome]], options: argparse.Namespace
) -> None:
    about = table.about
    ceiling = statistics.fmean(max(values) for values in zip(*table.top1, strict=True))
    spreads = [statistics.stdev(values) for values in table.top1 if len(values) > 1]
    noise = f"{statistics.fmean(spreads):.1f}" if spreads else "not measured"
    print(
        f"\n### {table.name}: {len(table.dials)} recipes, {about['n_val']} validation images, "
        f"{options.trials} trials, n = {len(outcomes['advice'])} searches an arm\n\n"
        f"Best of the table {ceiling:.1f}, its median "
        f"{statistics.median(v for values in table.top1 for v in values):.1f}; the same recipe "
        f"with another training seed: standard deviation {noise} on average.\n"
    )
    steps = [n for n in (1, 3, 6, 12) if n <= options.trials]
    columns = ["arm", *(f"best after {n}" for n in steps), "less default first", "other seed"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    plain = outcomes["default first"]
    for arm, found in outcomes.items():
        cells = [_mean([outcome.best[n - 1] for outcome in found]) for n in steps]
        paired = [a.best[-1] - b.best[-1] for a, b in zip(found, plain, strict=True)]
        other = [outcome.unseen for outcome in found if outcome.unseen is not None]
        print(f"| {arm} | {' | '.join(cells)} | {_mean(paired, sign='+')} | {_mean(other)} |")


def _mean(values: Sequence[float], *, sign: str = "") -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):{sign}.2f} ± {statistics.stdev(values):.2f}"


if __name__ == "__main__":
    main()
