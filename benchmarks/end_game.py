"""Simulate the end of searches: who is recommended, how good that is, and what is claimed of it.

    python benchmarks/end_game.py record -o end_game.jsonl
    python benchmarks/end_game.py table end_game.jsonl
    python benchmarks/end_game.py noise

A simulated search draws recipes at random from a recorded table (`search_replay.py` has them). A
run of a recipe gives the mean of its recorded runs, and normal noise of a given dispersion on top.
Promotion and repeats are the engine's own (`ledger.promotion`, `ledger.repeats`), and so are the
final runs' rules (`study.judgement`); what is simulated is only the training. Rules of the end:

* `one run`: no repeats; the best single run.
* `plain mean`: a quarter of the epochs on repeats; the best mean of a recipe's runs.
* `now`: the same runs; the most valuable recipe, without final runs, and with them after a search
  that is so much longer as they take less than those of before.
* `before`: no repeats; the best three and the default with four new seeds each, and the highest
  lower confidence bound of those alone, as it was until September 2026.

`noise` prints what the recorded runs say of seeds: the dispersion of every set of runs, the prior
that fits them best, and how often a run lies where the runs before it said.
"""

import argparse
import json
import math
import random
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import advice_replay
import recordings
from scipy.optimize import brentq
from scipy.special import digamma, polygamma, stdtrit

from nbtl_search.evidence.noise import binomial_variance, seed_noise
from nbtl_search.evidence.values import values_of
from nbtl_search.ledger.promotion import NEW, Ladder, Room, Standing, choose
from nbtl_search.ledger.repeats import worth_repeating
from nbtl_search.spec.study import REPEATS, Pruning

TABLES = ("dtd10", "flowers", "caltech20")
DISPERSIONS = (0.3, 0.7, 1.5)
RULES = ("one run", "plain mean", "now", "now, final runs", "before, final runs")
EPOCHS = (80, 160)
EXTRA = {"now, final runs": 36}  # so much less its final runs take, on average
RUNG = 3
N_FIRST = 9  # the default and the points of the design
N_FINAL, N_CANDIDATES = 4, 3
HOPELESS = 0.05
Runs = dict[int, list[float]]


class Search:
    """A simulated search, one worker."""

    def __init__(self, plan: Mapping[str, Any], *, share: float) -> None:
        plain = json.loads((advice_replay.TABLES / f"{plan['table']}.json").read_text("utf-8"))
        self.chance = random.Random(f"{plan['table']} {plan['seed']}")
        rows = self.chance.sample(plain["rows"], round(0.7 * len(plain["rows"])))
        curves = [
            [statistics.fmean(max(one[:epoch]) for one in row["val_top1"])
             for epoch in (RUNG, len(row["val_top1"][0]))]
            for row in rows
        ]  # fmt: skip
        self.at_rung, self.worth = zip(*curves, strict=True)
        self.n_images = plain["about"]["n_val"]
        self.dispersion = plan["dispersion"]
        n_epochs = plain["about"]["epochs"]
        self.ladder = Ladder(
            rungs=(RUNG,), n_epochs=n_epochs, pruning=Pruning(),
            repeats=share, n_images=self.n_images,
        )  # fmt: skip
        self.standings: list[Standing] = []
        self.recipes: dict[int, int] = {}
        self.runs: Runs = {}

    def noisy(self, mean: float) -> float:
        """Return what a run gives."""
        variance = self.dispersion * binomial_variance(mean, n_images=self.n_images)
        return min(100.0, max(0.0, self.chance.gauss(mean, math.sqrt(variance))))

    def run(self, n_epochs: int) -> None:
        """Spend so many epochs; recipe 0 is the default."""
        left = n_epochs
        while True:
            n_recipes = sum(one.repeat_of is None for one in self.standings)
            room = Room(has_slot=n_recipes < len(self.worth), epochs=left, n_first=N_FIRST)
            chosen = choose(self.standings, room, self.ladder)
            if chosen is None:
                return
            if chosen != NEW:
                left -= self._promote(chosen)
                continue
            first = worth_repeating(self.standings, room, self.ladder)
            left -= self._begin(n_recipes) if first is None else self._repeat(first.number)

    def _begin(self, recipe: int) -> int:
        is_default = recipe == 0
        number = len(self.standings)
        value = self.noisy(self.worth[recipe]) if is_default else None
        granted = self.ladder.n_epochs if is_default else RUNG
        self.standings.append(
            Standing(
                trial_id=number,
                number=number,
                state="complete" if is_default else "paused",
                protected=is_default,
                granted=granted,
                value=value,
                best_at=(self.noisy(self.at_rung[recipe]),),
            )
        )
        self.recipes[number] = recipe
        if value is not None:
            self.runs[recipe] = [value]
        return granted

    def _promote(self, number: int) -> int:
        recipe = self.recipes[number]
        value = self.noisy(self.worth[recipe])
        old = self.standings[number]
        self.standings[number] = Standing(
            trial_id=number, number=number, state="complete", protected=False,
            granted=self.ladder.n_epochs, value=value, best_at=old.best_at,
        )  # fmt: skip
        self.runs[recipe] = [value]
        return self.ladder.n_epochs - RUNG

    def _repeat(self, number: int) -> int:
        recipe = self.recipes[number]
        value, new = self.noisy(self.worth[recipe]), len(self.standings)
        self.standings.append(
            Standing(
                trial_id=new,
                number=new,
                state="complete",
                protected=True,
                value=value,
                granted=self.ladder.n_epochs,
                best_at=(None,),
                repeat_of=number,
            )
        )
        self.recipes[new] = recipe
        self.runs[recipe].append(value)
        return self.ladder.n_epochs


def simulated(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the regret of who is recommended, and how what is claimed of it lies to the truth."""
    rule = plan["rule"]
    search = Search(plan, share=0.0 if rule.startswith(("one", "before")) else REPEATS)
    n_searched = plan["epochs"] + EXTRA.get(rule, 0)
    search.run(n_searched)
    n_finals = 0
    if rule == "before, final runs":
        winner, claimed, half, n_finals = _before(search)
    else:
        if rule == "now, final runs":
            n_finals = _final_runs(search)
        values = values_of(search.runs, n_images=search.n_images)
        winner = values.ranked(sorted(search.runs))[0]
        if rule in {"one run", "plain mean"}:
            winner = max(search.runs, key=lambda one: statistics.fmean(search.runs[one]))
        claimed = values.by[winner].mean
        half = values.noise.quantile(0.95) * math.sqrt(values.by[winner].variance)
        if rule in {"one run", "plain mean"}:
            claimed = statistics.fmean(search.runs[winner])
            half *= math.sqrt(
                values.by[winner].run_variance / values.by[winner].n / values.by[winner].variance
            )
    truth = search.worth[winner]
    return {
        "regret": round(max(search.worth) - truth, 3),
        "spent": n_searched + n_finals * search.ladder.n_epochs,
        "bias": round(claimed - truth, 3),
        "covered": abs(claimed - truth) <= half,
    }


def _candidates(search: Search) -> list[int]:
    values = values_of(search.runs, n_images=search.n_images)
    ranked = values.ranked(sorted(search.runs))
    return [0, *[one for one in ranked if one != 0][:N_CANDIDATES]]


def _final_runs(search: Search) -> int:
    """Add final runs, seed by seed, as `study.finals` does; return how many there were."""
    still_in, n_runs = _candidates(search), 0
    for seed in range(N_FINAL):
        for recipe in still_in:
            search.runs[recipe].append(search.noisy(search.worth[recipe]))
            n_runs += 1
        if seed == 0:
            continue
        values = values_of(search.runs, n_images=search.n_images)
        best = values.ranked(still_in)[0]
        still_in = [
            one
            for one in still_in
            if one == best or values.probability_better(one, best) >= HOPELESS
        ]
        if len(still_in) == 1:
            break
    return n_runs


def _before(search: Search) -> tuple[int, float, float, int]:
    """Return who won by the rule of before, what was claimed, its margin, and the final runs."""
    first = sorted(search.runs, key=lambda one: -search.runs[one][0])
    chosen = [0, *[one for one in first if one != 0][:N_CANDIDATES]]
    runs = {one: [search.noisy(search.worth[one]) for _ in range(N_FINAL)] for one in chosen}
    n_free = len(chosen) * (N_FINAL - 1)
    pooled = math.sqrt(statistics.fmean(statistics.variance(each) for each in runs.values()))
    error = pooled / math.sqrt(N_FINAL)
    bounds = {
        one: statistics.fmean(each) - stdtrit(n_free, 0.9) * error for one, each in runs.items()
    }
    winner = max(bounds, key=lambda one: bounds[one])
    half = float(stdtrit(n_free, 0.975)) * error
    return winner, statistics.fmean(runs[winner]), half, len(chosen) * N_FINAL


def print_table(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print the mean regret, bias and coverage of every rule, by dispersion."""
    found: dict[tuple[int, float, str], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        found[line["epochs"], line["dispersion"], line["rule"]].append(line)
    print("| search | dispersion | rule | regret | claimed - true | 95 % covers | epochs | n |")
    print("|---|---|---|---|---|---|---|---|")
    for (epochs, dispersion, rule), rows in sorted(
        found.items(), key=lambda item: (*item[0][:2], RULES.index(item[0][2]))
    ):
        regrets = [row["regret"] for row in rows]
        error = statistics.stdev(regrets) / math.sqrt(len(rows))
        bias = statistics.fmean(row["bias"] for row in rows)
        covered = statistics.fmean(row["covered"] for row in rows)
        spent = statistics.fmean(row["spent"] for row in rows)
        print(
            f"| {epochs} epochs | {dispersion} | {rule}"
            f" | {statistics.fmean(regrets):.2f} ± {error:.2f} | {bias:+.2f}"
            f" | {covered:.0%} | {spent:.0f} | {len(rows)} |"
        )


def recorded_sets() -> dict[str, tuple[int, Runs]]:
    """Return the recorded runs that differ in their seed: by set, its images and its recipes."""
    sets: dict[str, tuple[int, Runs]] = {}
    for name in TABLES:
        plain = json.loads((advice_replay.TABLES / f"{name}.json").read_text("utf-8"))
        runs = {n: [max(one) for one in row["val_top1"]] for n, row in enumerate(plain["rows"])}
        sets[name] = plain["about"]["n_val"], runs
    by_recipe: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    images: dict[str, int] = {}
    for line in recordings.read([advice_replay.TABLES / "against_fastai.jsonl"]):
        for split in ("val", "test") if "recipe" in line else ():
            key = f"{line['folder']}, {split}"
            by_recipe[key][line["recipe"]].append(line[f"{split}_top1"])
            images[key] = line[f"n_{split}"]
    for key, recipes in by_recipe.items():
        sets[key] = images[key], dict(enumerate(recipes.values()))
    return {
        key: (n, {one: runs for one, runs in found.items() if len(runs) > 1})
        for key, (n, found) in sets.items()
        if sum(len(runs) - 1 for runs in found.values()) > 2
    }


def print_noise() -> None:
    """Print the dispersions, the prior that fits them, and how well runs are foretold."""
    print("| runs | images | degrees of freedom | dispersion |\n|---|---|---|---|")
    logs, errors = [], []
    for name, (n_images, runs) in recorded_sets().items():
        top = max(statistics.fmean(each) for each in runs.values())
        good = [each for each in runs.values() if statistics.fmean(each) > top - 10]
        n_free = sum(len(each) - 1 for each in good)
        squares = sum(
            (len(each) - 1)
            * statistics.variance(each)
            / binomial_variance(statistics.fmean(each), n_images=n_images)
            for each in good
        )
        print(f"| {name} | {n_images} | {n_free} | {squares / n_free:.2f} |")
        logs.append(math.log(squares / n_free) - digamma(n_free / 2) + math.log(n_free / 2))
        errors.append(float(polygamma(1, n_free / 2)))
    # Smyth 2004, section 6.2: moments of the logarithms of the variances.
    excess = statistics.variance(map(float, logs)) - statistics.fmean(errors)
    half = brentq(lambda x: float(polygamma(1, x)) - excess, 1e-3, 1e4) if excess > 0 else math.inf
    centre = math.exp(statistics.fmean(map(float, logs)) + float(digamma(half)) - math.log(half))
    print(f"\nbest prior: dispersion {centre:.2f}, {2 * half:.1f} degrees of freedom")
    n_inside = n_all = 0
    for n_images, runs in recorded_sets().values():
        earlier = {one: each[:-1] for one, each in runs.items()}
        noise = seed_noise(earlier.values(), n_images=n_images)
        for one, each in runs.items():
            mean = statistics.fmean(earlier[one])
            error = math.sqrt(noise.variance(mean) * (1 + 1 / len(earlier[one])))
            n_inside += abs(each[-1] - mean) <= noise.quantile(0.95) * error
            n_all += 1
    print(f"95 % intervals for the last run, by those before: {n_inside} of {n_all} hold it")


def main() -> None:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("record")
    command.add_argument("--seeds", type=int, default=100)
    command.add_argument("--part", default="1/1")
    command.add_argument("-o", "--output", type=Path, required=True)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    commands.add_parser("noise")
    options = parser.parse_args()
    if options.what == "noise":
        print_noise()
    elif options.what == "table":
        print_table(recordings.read(options.files))
    else:
        plans = [
            {"table": table, "dispersion": dispersion, "epochs": epochs, "rule": rule, "seed": seed}
            for seed in range(options.seeds)
            for table in TABLES
            for dispersion in DISPERSIONS
            for epochs in EPOCHS
            for rule in RULES
        ]
        recordings.record(plans, simulated, output=options.output, part=options.part)


if __name__ == "__main__":
    main()
