"""Measure training throughput on a CPU, loader included: ours and a plain timm loop, in turns.

    python benchmarks/throughput.py --data FOLDER --home HOME

Each variant is a process of its own, on one thread, as its users would run it: ours as a worker's
trainer does, timm's with its own dataset, transforms, mixup and SGD. In every round each variant
trains for some seconds while the others wait, in an order drawn anew; a ratio is that of two
throughputs of one round. The table has medians over the rounds with the range, and peak memory.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from nbtl_search.network.device import FAST_BF16

NETWORKS = (
    ("mobilenetv2_100", 112, 32),
    ("efficientnet_b0", 112, 32),
    ("convnext_atto", 112, 32),
    ("resnet50", 112, 32),
    ("inception_v4", 299, 8),
)
TIMM = {
    "timm, its defaults": {"precision": "fp32", "channels_last": False},
    "timm, fp32, channels last": {"precision": "fp32", "channels_last": True},
    "timm, bf16, channels last": {"precision": "bf16", "channels_last": True},
}
BEST = "timm, best of three"


@dataclass(frozen=True)
class Variant:
    """One process: what it is called, and how it is started."""

    name: str
    command: Sequence[str]
    order: dict[str, Any]


def main() -> None:
    """Measure, and print a table for each network."""
    options = _options()
    if options.timm_loop:
        timm_loop()
        return
    print(_about())
    print("\n| network | variant | images/s: median (range) | to timm's best | peak MB |")
    print("|---|---|---|---|---|")
    for name, px, batch_size in NETWORKS:
        if options.networks and name not in options.networks:
            continue
        variants = [*_ours(name, px, batch_size, options), *_timms(name, px, batch_size, options)]
        rates, peaks = _measured(variants, rounds=options.rounds, seconds=options.seconds)
        for row in _rows(name, rates, peaks):
            print(row, flush=True)


def _ours(name: str, px: int, batch_size: int, options: argparse.Namespace) -> Iterator[Variant]:
    for precision in ("auto", "bf16", "fp32"):
        recipe = {
            "data": {"dataset": str(options.data), "image_px": px},
            "model": {"name": name, "weights": "random"},
            "train": {
                "device": "cpu",
                "precision": precision,
                "n_threads": 1,
                "batch_size": batch_size,
            },
            "dials": {"n_l2sp": 0, "alpha": 0.0, "beta": 1e-4, "lr_high": 1e-4},
            "augment": {},
            "methods": {},
        }
        order = {"recipe": recipe, "home": str(options.home), "seconds": options.seconds}
        command = (sys.executable, "-m", "nbtl_search.training.speed")
        yield Variant(f"ours, precision {precision}", command, order)


def _timms(name: str, px: int, batch_size: int, options: argparse.Namespace) -> Iterator[Variant]:
    for title, flags in TIMM.items():
        order = flags | {
            "network": name,
            "px": px,
            "batch_size": batch_size,
            "data": str(options.data),
            "seconds": options.seconds,
        }
        yield Variant(title, (sys.executable, __file__, "--timm-loop"), order)


def _measured(
    variants: Sequence[Variant], *, rounds: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return images per second of every round, and peak memory in MB, by variant."""
    rates: dict[str, list[float]] = {variant.name: [] for variant in variants}
    with ExitStack() as stack:
        running = {}
        for variant in variants:
            process = stack.enter_context(
                subprocess.Popen(
                    variant.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
            )
            running[variant.name] = process
            _ask(process, json.dumps(variant.order))
        names = list(running)
        for n_round in range(rounds):
            random.Random(n_round).shuffle(names)
            for name in names:
                rates[name].append(_ask(running[name], str(seconds))["images_per_s"])
        peaks = {name: _peak_mb(process.pid) for name, process in running.items()}
        for process in running.values():
            process.stdin.close()
    return rates, peaks


def _ask(process: Any, line: str) -> dict[str, Any]:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    if "error" in answer:
        sys.exit(answer["error"])
    return answer


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _rows(network: str, rates: dict[str, list[float]], peaks: dict[str, float]) -> Iterator[str]:
    best = max(TIMM, key=lambda name: statistics.median(rates[name]))
    for name, found in rates.items():
        ratios = [one / other for one, other in zip(found, rates[best], strict=True)]
        yield (
            f"| {network} | {name} | {_spread(found, '.1f')} | {_spread(ratios, '.2f')} "
            f"| {peaks[name]:.0f} |"
        )


def _spread(values: Sequence[float], form: str) -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def timm_loop() -> None:
    """Train as timm's own script does, for as long as each line on stdin says."""
    from timm.data import create_dataset, create_loader  # noqa: PLC0415
    from timm.loss import SoftTargetCrossEntropy  # noqa: PLC0415

    order = json.loads(sys.stdin.readline())
    torch.manual_seed(0)
    memory_format = torch.channels_last if order["channels_last"] else torch.contiguous_format
    dataset = create_dataset("", root=order["data"], class_map="")
    n_classes = len(dataset.reader.class_to_idx)
    model = timm.create_model(order["network"], num_classes=n_classes)
    model = model.to(memory_format=memory_format).train()
    loader = create_loader(
        dataset,
        input_size=(3, order["px"], order["px"]),
        batch_size=order["batch_size"],
        is_training=True,
        use_prefetcher=False,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.25,
        interpolation="random",
        num_workers=0,
        collate_fn=None,
        device=torch.device("cpu"),
    )
    mixup = timm.data.Mixup(mixup_alpha=0.2, label_smoothing=0.1, num_classes=n_classes)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=1e-4, foreach=True
    )
    loss_of = SoftTargetCrossEntropy()

    def update(images: torch.Tensor, labels: torch.Tensor) -> None:
        images, targets = mixup(images, labels)
        images = images.contiguous(memory_format=memory_format)
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=order["precision"] == "bf16"):
            loss = loss_of(model(images), targets)
        loss.backward()
        optimiser.step()

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    endless = batches()
    update(*next(endless))
    print(json.dumps({"ready": True}), flush=True)
    while line := sys.stdin.readline():
        started, n_images = time.perf_counter(), 0
        while time.perf_counter() - started < float(line):
            images, labels = next(endless)
            update(images, labels)
            n_images += len(labels)
        rate = n_images / (time.perf_counter() - started)
        print(json.dumps({"images_per_s": rate}), flush=True)


def _about() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    known = torch.cpu.get_capabilities()
    have = [name for name in ("avx2", "avx512_f", *FAST_BF16) if known.get(name)]
    return (
        f"commit {commit}, torch {torch.__version__}, timm {timm.__version__}, Python "
        f"{platform.python_version()}, one thread; the CPU has {', '.join(have)}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of images, one subfolder a class")
    parser.add_argument("--home", type=Path)
    parser.add_argument("--networks", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--timm-loop", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
