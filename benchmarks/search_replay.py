"""Replay searches from recorded tables: what does an engine need to find a good recipe?

    python benchmarks/search_replay.py record --seeds 100 --workers 1 -o replay.jsonl
    python benchmarks/search_replay.py table replay.jsonl

A table has recipes on one dataset, and every epoch of each. A replayed search has 70 % of them,
drawn anew for each search seed and given to all engines alike; it proposes points, the nearest
recipe not tried yet takes a point's place, and an epoch gives what it gave when it was recorded.
`now` is the engine itself: its sampler and design, and `ledger.promotion` and `ledger.repeats`,
which decide who trains next, with its audits; `now, no repeats` has neither repeats nor audits.
`before` is the rule that it had until 8e76a62, with the settings of then. The others are random
search and Optuna's TPE as it comes, with its successive halving and its Hyperband.

Counted are the epochs until a recipe within half a point of the best one has run to its end, and
what the recipe that an engine would recommend after so many epochs lacks, as the mean over the
table's training seeds, of which the search has seen one. A search that has stopped all that is good
goes on at random with what it has stopped.
"""

import argparse
import heapq
import itertools
import json
import math
import random
import statistics
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import advice_replay
import optuna
import recordings

from nbtl_search import space as spaces
from nbtl_search.evidence.values import values_of
from nbtl_search.ledger.promotion import NEW, Ladder, Room, Standing, choose, ladder_of
from nbtl_search.ledger.repeats import worth_repeating
from nbtl_search.spec import (
    DataSettings,
    Dials,
    KnownRecipe,
    SearchSettings,
    StudySpec,
    TrainSettings,
)
from nbtl_search.spec.study import Pruning
from nbtl_search.study.sampling import is_drawn, sampler

TABLES = ("dtd10", "flowers", "caltech20")
SHARE = 0.7
NEAR = 0.5
BUDGETS = (25, 50, 100)
N_STARTUP = 8
Curve = Sequence[float]
Job = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One search: its recipes, the curves that it sees, and all training seeds' accuracies."""

    dials: tuple[Dials, ...]
    curves: tuple[Curve, ...]
    worth: tuple[float, ...]
    """Of each recipe, the mean over the training seeds of its best epoch."""
    others: tuple[tuple[float, ...], ...]
    """Of each recipe, what its runs with the other training seeds gave."""
    n_images: int
    space: spaces.Space
    n_updates: int
    seed: int

    @property
    def n_epochs(self) -> int:
        """Return the length of the schedule."""
        return len(self.curves[0])

    def best_until(self, row: int, epoch: int) -> float:
        """Return a recipe's best validation top-1 until an epoch."""
        return max(self.curves[row][:epoch])

    def final(self, row: int) -> float:
        """Return what a whole trial of the recipe would report."""
        return self.best_until(row, self.n_epochs)


class Engine:
    """What decides. A job is (recipe, epochs it has, last epoch): train that recipe to there."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.granted: dict[int, int] = {}
        self.done: dict[int, int] = {}
        self.chance = random.Random(f"engine {task.seed}")

    def take(self) -> Job | None:
        """Return a free worker's next job; None where there is nothing to do now."""
        raise NotImplementedError

    def end(self, row: int, epoch: int) -> None:
        """Learn that a job is done."""
        self.done[row] = epoch

    def untried(self) -> list[int]:
        """Return the recipes that no trial has had."""
        return [row for row in range(len(self.task.curves)) if row not in self.granted]

    def recommended(self) -> int:
        """Return the recipe with the best whole trial; without one, with the best of the others."""
        rows = [row for row, epoch in self.done.items() if epoch == self.task.n_epochs]
        rows = rows or list(self.done)
        return max(rows, key=lambda row: self.task.best_until(row, self.done[row]))

    def stopped(self) -> Job | None:
        """Return a recipe that was stopped, now that there is no other, to be trained anew."""
        rows = [row for row, epoch in self.done.items() if epoch < self.task.n_epochs]
        return (self.chance.choice(rows), 0, self.task.n_epochs) if rows else None


class Random(Engine):
    """Whole trials in any order."""

    def take(self) -> Job | None:
        """Begin a whole trial."""
        rows = self.untried()
        if not rows:
            return None
        row = self.chance.choice(rows)
        self.granted[row] = self.task.n_epochs
        return row, 0, self.task.n_epochs


class Proposing(Engine):
    """Points come from a sampler of Optuna's."""

    def __init__(self, task: Task, pruner: optuna.pruners.BasePruner | None = None) -> None:
        super().__init__(task)
        self.study = optuna.create_study(
            direction="maximize",
            pruner=pruner or optuna.pruners.NopPruner(),
            sampler=optuna.samplers.TPESampler(seed=task.seed),
        )
        self.trials: dict[int, optuna.Trial] = {}

    def prepare(self, slot: int) -> None:
        """Set what proposes the point of a slot."""

    def propose(self) -> int | None:
        """Begin a trial of the nearest recipe that was not tried."""
        rows, task, slot = self.untried(), self.task, len(self.granted)
        if not rows:
            return None
        self.prepare(slot)
        proposed = self.study.ask()
        wanted = spaces.suggest(task.space, proposed)
        self.study.tell(proposed, state=optuna.trial.TrialState.FAIL)  # samplers pass it over
        row = min(rows, key=lambda row: advice_replay.distance(task.space, wanted, task.dials[row]))
        self.study.enqueue_trial(spaces.params_of(task.space, task.dials[row]))
        self.trials[row] = self.study.ask()
        spaces.suggest(task.space, self.trials[row])
        return row

    def report(self, row: int, epoch: int) -> None:
        """Report an epoch to Optuna."""
        self.trials[row].report(self.task.curves[row][epoch - 1], step=epoch)

    def tell(self, row: int, *, is_whole: bool) -> None:
        """Tell Optuna that a trial has ended."""
        value = self.task.final(row) if is_whole else None
        state = None if is_whole else optuna.trial.TrialState.PRUNED
        self.study.tell(self.trials[row], value, state=state)


class Stopping(Proposing):
    """Trials are stopped for good, after any epoch."""

    def __init__(self, task: Task, pruner: optuna.pruners.BasePruner | None = None) -> None:
        super().__init__(task, pruner)
        self.going: list[int] = []

    def take(self) -> Job | None:
        """Go on for an epoch, or begin."""
        row = self.going.pop() if self.going else self.propose()
        if row is None:
            return self.stopped()
        before = self.granted.get(row, 0)
        self.granted[row] = before + 1
        return row, before, before + 1

    def end(self, row: int, epoch: int) -> None:
        """Report the epoch, and stop the trial if it is weak."""
        is_again = row not in self.granted or epoch > self.granted[row]
        super().end(row, epoch)
        if is_again:
            return
        self.report(row, epoch)
        if epoch == self.task.n_epochs:
            self.tell(row, is_whole=True)
        elif self.is_weak(row, epoch):
            self.tell(row, is_whole=False)
        else:
            self.going.append(row)

    def is_weak(self, row: int, epoch: int) -> bool:  # noqa: ARG002
        """Tell whether a trial is to be stopped."""
        return self.trials[row].should_prune()


class Ours(Proposing):
    """The sampler and the design of a study, with the default as its only known recipe."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.spec = StudySpec(
            name="replay",
            data=DataSettings(dataset="replay"),
            train=TrainSettings(epochs=task.n_epochs),
            search=SearchSettings(
                seed=task.seed, n_startup=N_STARTUP, known=(KnownRecipe(name="default"),)
            ),
        )
        self.design = spaces.design(task.space, n=N_STARTUP, seed=task.seed, prior={})

    def prepare(self, slot: int) -> None:
        """Take a point of the design, or ask the sampler of a worker."""
        self.study.sampler = sampler(self.spec, slot=slot)
        if slot < len(self.design):
            self.study.enqueue_trial(self.design[slot])


class Now(Ours):
    """Trials pause at a rung, the best are promoted, some are audited, and recipes run again.

    A recipe can run again as often as it was recorded with other training seeds.
    """

    def __init__(self, task: Task, *, is_plain: bool = False) -> None:
        super().__init__(task)
        if is_plain:
            pruning = self.spec.search.pruning.replace(audit=0.0)
            search = self.spec.search.replace(repeats=0.0, pruning=pruning)
            self.spec = self.spec.replace(search=search)
        self.ladder: Ladder = ladder_of(self.spec, n_updates=task.n_updates, n_images=task.n_images)
        self.repeats: dict[int, int] = {}  # by a number beyond all rows
        self.audited: set[int] = set()

    def take(self) -> Job | None:
        """Do what a worker is granted."""
        # Without another recipe: as if the epochs left were too few for a new trial.
        room = Room(has_slot=True, epochs=None if self.untried() else 1)
        standings = self._standings()
        chosen = choose(standings, room, self.ladder)
        if chosen == NEW:
            again = worth_repeating(
                standings, Room(has_slot=True, n_first=1 + N_STARTUP), self.ladder
            )
            if again is not None and (job := self._repeat(again.trial_id)) is not None:
                return job
        row = self.propose() if chosen == NEW else chosen
        if row is None:
            return None
        before = self.granted.get(row, 0)
        if not before and is_drawn(self.spec, len(self.granted)):
            self.audited.add(row)
        self.granted[row] = self.ladder.stop_after(before, protected=row in self.audited)
        return row, before, self.granted[row]

    def _repeat(self, row: int) -> Job | None:
        n_before = sum(first == row for first in self.repeats.values())
        if n_before == len(self.task.others[row]):
            return None
        number = len(self.task.curves) + len(self.repeats)
        self.repeats[number] = row
        self.granted[number] = self.task.n_epochs
        return number, 0, self.task.n_epochs

    def end(self, row: int, epoch: int) -> None:
        """Report the rung or the end."""
        super().end(row, epoch)
        if row in self.repeats:
            return
        self.report(row, epoch)
        if epoch == self.task.n_epochs:
            self.tell(row, is_whole=True)

    def recommended(self) -> int:
        """Return the most valuable recipe."""
        runs: dict[int, list[float]] = defaultdict(list)
        for row, epoch in self.done.items():
            if epoch == self.task.n_epochs:
                runs[self.repeats.get(row, row)].append(self._value(row))
        if not runs:
            return super().recommended()
        return values_of(runs, n_images=self.task.n_images).ranked(list(runs))[0]

    def _value(self, row: int) -> float:
        if row not in self.repeats:
            return self.task.final(row)
        first = self.repeats[row]
        n_before = sum(one == first for number, one in self.repeats.items() if number < row)
        return self.task.others[first][n_before]

    def _standings(self) -> list[Standing]:
        n_epochs = self.task.n_epochs
        found = []
        for row, granted in self.granted.items():
            done = self.done.get(row, 0)
            is_repeat = row in self.repeats
            is_whole = done == granted == n_epochs
            found.append(
                Standing(
                    trial_id=row,
                    number=row,
                    state="running" if done < granted else "complete" if is_whole else "paused",
                    protected=is_repeat,
                    audited=row in self.audited,
                    granted=granted,
                    value=self._value(row) if is_whole else None,
                    repeat_of=self.repeats.get(row),
                    best_at=tuple(
                        self.task.best_until(row, rung) if not is_repeat and done >= rung else None
                        for rung in self.ladder.rungs
                    ),
                )
            )
        return found


class Before(Ours, Stopping):
    """Successive halving of the stopping type, at a quarter and a half, never before 60 updates."""

    PRUNING = Pruning(rungs=(0.25, 0.5), min_updates=60)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        search = self.spec.search.replace(pruning=self.PRUNING)
        spec = self.spec.replace(search=search)
        self.rungs = ladder_of(spec, n_updates=task.n_updates).rungs

    def is_weak(self, row: int, epoch: int) -> bool:
        """Compare with those that have come to the rung."""
        if epoch not in self.rungs:
            return False
        mine = self.task.best_until(row, epoch)
        peers = [self.task.best_until(r, epoch) for r, done in self.done.items() if done >= epoch]
        n_promoted = max(1, math.floor(len(peers) / self.PRUNING.reduction + 1e-9))
        is_enough = len(peers) >= self.PRUNING.min_peers
        return is_enough and sum(peer > mine for peer in peers) >= n_promoted


ENGINES = {
    "random": Random,
    "TPE, successive halving": lambda task: Stopping(
        task, optuna.pruners.SuccessiveHalvingPruner()
    ),
    "TPE, Hyperband": lambda task: Stopping(
        task, optuna.pruners.HyperbandPruner(max_resource=task.n_epochs)
    ),
    "before": Before,
    "now, no repeats": lambda task: Now(task, is_plain=True),
    "now": Now,
}


def replayed(engine: Engine, n_workers: int) -> dict[str, Any]:
    """Return the epochs until a near-best recipe was trained, and the regret on the way."""
    task = engine.task
    goal = max(task.final(row) for row in range(len(task.curves))) - NEAR
    ceiling = max(task.worth)
    clock, spent, found = itertools.count(), 0, None
    regrets: dict[int, float] = {}
    working: list[tuple[int, int, Job]] = []  # when it ends, order, job
    now = 0
    while found is None or len(regrets) < len(BUDGETS):
        while len(working) < n_workers and (job := engine.take() or engine.stopped()):
            row, start, until = job
            if any(row == other for _, _, (other, _, _) in working):
                break  # two workers would train anew what was stopped
            heapq.heappush(working, (now + until - start, next(clock), job))
        if not working:
            break
        now, _, (row, start, until) = heapq.heappop(working)
        spent += until - start
        for budget in BUDGETS:
            if spent > budget and budget not in regrets:
                regrets[budget] = ceiling - _recommended(engine)
        engine.end(row, until)
        is_new = row < len(task.curves)
        if found is None and is_new and until == task.n_epochs and task.final(row) >= goal:
            found = spent
    rest = {budget: ceiling - _recommended(engine) for budget in BUDGETS if budget not in regrets}
    return {
        "spent": found or spent,
        "regret": {str(b): round((regrets | rest)[b], 3) for b in BUDGETS},
    }


def _recommended(engine: Engine) -> float:
    """Return what the recommended recipe is worth."""
    return (
        engine.task.worth[engine.recommended()]
        if engine.done
        else statistics.fmean(engine.task.worth)
    )


def tasks_of(name: str, training_seed: int, search_seed: int) -> Task:
    """Return one search of a table."""
    plain = json.loads((advice_replay.TABLES / f"{name}.json").read_text("utf-8"))
    chance = random.Random(f"{name} {search_seed}")
    rows = chance.sample(plain["rows"], round(SHARE * len(plain["rows"])))
    about = plain["about"]
    return Task(
        dials=tuple(Dials.parse(row["dials"]) for row in rows),
        curves=tuple(tuple(row["val_top1"][training_seed]) for row in rows),
        worth=tuple(statistics.fmean(max(curve) for curve in row["val_top1"]) for row in rows),
        others=tuple(
            tuple(max(curve) for seed, curve in enumerate(row["val_top1"]) if seed != training_seed)
            for row in rows
        ),
        n_images=about["n_val"],
        space=spaces.build(SearchSettings(space="paper"), n_blocks=about["n_blocks"]),
        n_updates=max(1, about["n_train"] // about["batch_size"]),
        seed=search_seed,
    )


def _n_training_seeds(name: str) -> int:
    plain = json.loads((advice_replay.TABLES / f"{name}.json").read_text("utf-8"))
    return len(plain["rows"][0]["val_top1"])


def main() -> None:
    """Do what the first argument says."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    options = _options()
    if options.what == "table":
        print_table(recordings.read(options.files))
        return
    plans = [
        {"table": name, "training_seed": training_seed, "search_seed": seed,
         "engine": engine, "workers": workers}
        for workers in options.workers
        for seed in range(options.seeds)
        for name in TABLES
        for training_seed in range(_n_training_seeds(name))
        for engine in ENGINES
    ]  # fmt: skip

    def made(plan: dict[str, Any]) -> dict[str, Any]:
        task = tasks_of(plan["table"], plan["training_seed"], plan["search_seed"])
        return replayed(ENGINES[plan["engine"]](task), plan["workers"])

    recordings.record(plans, made, output=options.output, part=options.part)


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print how many times fewer epochs than random each engine needs, and its regret."""
    found: dict[tuple[int, str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        key = (line["workers"], line["engine"], line["table"], line["training_seed"])
        found[key].append(line)
    columns = ["workers", "engine", "times fewer than random", "than before"]
    print(f"| {' | '.join(columns + [f'regret after {b}' for b in BUDGETS])} | n |")
    print(f"|{'---|' * (len(columns) + len(BUDGETS) + 1)}")
    for workers, engine in dict.fromkeys(key[:2] for key in found):
        ours = {key[2:]: rows for key, rows in found.items() if key[:2] == (workers, engine)}
        ratios = [
            _times(found, workers, other, engine, list(ours)) for other in ("random", "before")
        ]
        regrets = [
            statistics.fmean(
                statistics.fmean(row["regret"][str(budget)] for row in rows)
                for rows in ours.values()
            )
            for budget in BUDGETS
        ]
        n = min(len(rows) for rows in ours.values())
        cells = [str(workers), engine, *ratios, *(f"{regret:.2f}" for regret in regrets), str(n)]
        print(f"| {' | '.join(cells)} |")


def _times(
    found: dict[tuple[int, str, str, int], list[dict[str, Any]]],
    workers: int, other: str, engine: str, tables: Sequence[tuple[str, int]],
) -> str:  # fmt: skip
    """Return the geometric mean over the tables of the ratio of mean epochs, and its interval.

    The interval is that of 1,000 bootstrap samples of the search seeds, paired.
    """
    pairs = [
        list(
            zip(
                (row["spent"] for row in found[workers, other, *table]),
                (row["spent"] for row in found[workers, engine, *table]),
                strict=False,
            )
        )
        for table in tables
    ]

    def ratio(samples: Sequence[Sequence[tuple[int, int]]]) -> float:
        logs = [math.log(sum(a for a, _ in one) / sum(b for _, b in one)) for one in samples]
        return math.exp(statistics.fmean(logs))

    chance = random.Random(0)
    drawn = sorted(ratio([chance.choices(one, k=len(one)) for one in pairs]) for _ in range(1000))
    return f"{ratio(pairs):.2f} ({drawn[25]:.2f} to {drawn[974]:.2f})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("record")
    command.add_argument("--seeds", type=int, default=100)
    command.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    command.add_argument("--part", default="1/1")
    command.add_argument("-o", "--output", type=Path, required=True)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
