"""Measure what each method adds to one update of the weights, side by side in one run.

    python benchmarks/method_cost.py --data FOLDER --weights FILE --home HOME

In every round each configuration does one update of its own network, in an order drawn anew for
the round, on the same images; what else the machine does at that moment then hits all of them
alike. A ratio is that of two times of one round, to plain L2 or to what the method stands on. The
table has its median over the rounds, with a bootstrap interval. Loading and augmenting images, and
what is measured once before training (DELTA's attention, the source's predictions), are not timed.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import NbtlError
from nbtl_search.spec import Dials, Recipe
from nbtl_search.training.run import Run

LR = 1e-4  # low: no method may diverge while its time is taken
DISTILL = {"distill": 4.0}
N_BOOTSTRAP = 10_000


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A method as it is measured, and what it is compared with besides plain L2."""

    name: str
    dials: dict[str, Any]
    methods: dict[str, Any] = field(default_factory=dict)
    over: str | None = None
    mixup: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Median of paired ratios, with a bootstrap interval of 95 %."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one configuration costs; `reason` where it could not be measured."""

    name: str
    seconds: float | None = None
    to_l2: Ratio | None = None
    over: str | None = None
    to_over: Ratio | None = None
    reason: str = ""


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _options()
    options.home.mkdir(parents=True, exist_ok=True)
    runs, reasons = _built(options)
    times = _times(runs, n_rounds=options.rounds, n_warm=options.warm, seed=options.seed)
    costs = [_cost(one, times) for one in _chosen(options, _n_blocks(runs)) if one.name in runs]
    costs += [Cost(name=name, reason=reason) for name, reason in reasons.items()]
    about = _about(options)
    if options.json:
        plain = {"about": about, "n": options.rounds, "costs": [asdict(cost) for cost in costs]}
        print(json.dumps(plain, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in about.items()) + f"; n = {options.rounds}\n")
    _print_table(costs)


def configurations(n_blocks: int) -> list[Configuration]:
    """Return all that is measured, for a network of so many blocks; plain L2 first."""
    sp = {"n_l2sp": n_blocks, "alpha": 0.01}
    delta = {"delta_alpha": 1e-6}
    return [
        Configuration(name="L2", dials={}),
        Configuration(name="L2-SP", dials=sp),
        Configuration(name="DTNH over L2-SP", dials={**sp, "dtnh": "conflict"}, over="L2-SP"),
        Configuration(name="distillation", dials=DISTILL),
        Configuration(
            name="distillation, precomputed",
            dials=DISTILL,
            methods={"distill_teacher": "precomputed"},
            mixup=0.0,
        ),
        Configuration(
            name="DTNH over distillation",
            dials={**DISTILL, "dtnh": "conflict"},
            over="distillation",
        ),
        Configuration(name="DELTA, plain", dials={**delta, "delta": "plain"}),
        Configuration(name="DELTA, attention", dials={**delta, "delta": "attention"}),
        Configuration(name="BSS", dials={"bss": 0.001}),
        Configuration(name="stochastic normalisation", dials={"stochnorm_p": 0.5}),
        Configuration(name="kept source classifier", dials={"source_head": "keep"}),
        Configuration(name="first half frozen", dials={"frozen_layers": n_blocks // 2}),
        Configuration(name="all blocks frozen", dials={"frozen_layers": n_blocks}),
        Configuration(name="decay in updates", dials={"decay_updates": 100}),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of images, or a registered name")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--model", default="mobilenetv2_100")
    parser.add_argument("--weights", default="timm")
    parser.add_argument("--px", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--warm", type=int, default=3, help="rounds before, which do not count")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0, help="of the orders and the bootstrap")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these, and plain L2")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _chosen(options: argparse.Namespace, n_blocks: int) -> list[Configuration]:
    found = configurations(n_blocks)
    wanted = {"L2", *(options.only or (one.name for one in found))}
    if unknown := wanted - {one.name for one in found}:
        sys.exit(f"--only takes names of {[one.name for one in found]}, got {sorted(unknown)}")
    return [one for one in found if one.name in wanted]


def _built(options: argparse.Namespace) -> tuple[dict[str, Run], dict[str, str]]:
    """Return a run for each configuration, and the reasons of those that cannot be."""
    l2 = _run(options, configurations(1)[0])
    runs: dict[str, Run] = {"L2": l2}
    reasons: dict[str, str] = {}
    for one in _chosen(options, l2.network.layers.n_blocks)[1:]:
        print(f"building: {one.name}", file=sys.stderr)
        try:
            runs[one.name] = _run(options, one)
        except NbtlError as error:
            reasons[one.name] = str(error)
    return runs, reasons


def _run(options: argparse.Namespace, one: Configuration) -> Run:
    recipe = Recipe.parse(
        {
            "data": {"dataset": options.data, "image_px": options.px},
            "model": {"name": options.model, "weights": options.weights},
            "augment": {"mixup": one.mixup},
            "train": {
                "epochs": 1_000_000,
                "warmup_epochs": 0,
                "batch_size": options.batch,
                "n_threads": options.threads,
                "n_loaders": 0,
                "device": options.device,
            },
            "dials": Dials.parse({"lr_high": LR, "beta": 5e-4, **one.dials}),
            "methods": one.methods,
        }
    )
    return Run(recipe, prepared=prepare(recipe.data, home=options.home), home=options.home)


def _n_blocks(runs: dict[str, Run]) -> int:
    return int(runs["L2"].network.layers.n_blocks)


def _times(
    runs: dict[str, Run], *, n_rounds: int, n_warm: int, seed: int
) -> dict[str, list[float]]:
    """Return the seconds of each configuration's update in each round."""
    updates = {name: _updates(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    shuffle = random.Random(seed).shuffle
    for number in range(n_warm + n_rounds):
        shuffle(order)
        for name in order:
            seconds = next(updates[name])
            if number >= n_warm:
                times[name].append(seconds)
        print(f"\rround {number + 1} of {n_warm + n_rounds}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return times


def _updates(run: Run) -> Iterator[float]:
    """Yield the seconds of one update after the other, over as many epochs as are asked for."""
    while True:
        run.begin_epoch()
        for batch in run.batches():
            _wait(run)
            started = time.perf_counter()
            run.update(batch)
            _wait(run)
            yield time.perf_counter() - started
        run.end_epoch(None)


def _wait(run: Run) -> None:
    """Wait until the device has done what it was given."""
    if run.placement.device.type == "cuda":
        torch.cuda.synchronize(run.placement.device)


def _cost(one: Configuration, times: dict[str, list[float]]) -> Cost:
    mine = np.array(times[one.name])
    over = one.over if one.over in times else None
    return Cost(
        name=one.name,
        seconds=float(np.median(mine)),
        to_l2=None if one.name == "L2" else ratio(mine, np.array(times["L2"])),
        over=over,
        to_over=None if over is None else ratio(mine, np.array(times[over])),
    )


def ratio(times: Any, reference: Any, *, seed: int = 0) -> Ratio:
    """Return the median of the paired ratios, and the interval by resampling rounds."""
    ratios = times / reference
    draws = np.random.default_rng(seed).integers(len(ratios), size=(N_BOOTSTRAP, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high))


def _about(options: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607 wherever it is installed
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    return {
        "model": options.model,
        "px": options.px,
        "batch": options.batch,
        "threads": options.threads,
        "device": options.device,
        "machine": platform.processor() or platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "commit": commit or "unknown",
    }


def _print_table(costs: list[Cost]) -> None:
    print("| method | seconds | times plain L2 | times what it stands on |\n|---|---|---|---|")
    for cost in costs:
        if cost.reason:
            print(f"| {cost.name} | not measured: {cost.reason} | | |")
            continue
        stands = f"{_words(cost.to_over)} ({cost.over})" if cost.over else ""
        print(f"| {cost.name} | {cost.seconds:.4f} | {_words(cost.to_l2)} | {stands} |")


def _words(found: Ratio | None) -> str:
    return "" if found is None else f"{found.median:.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main()
