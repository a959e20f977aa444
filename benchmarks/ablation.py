"""What each setting gives alone, beside a folder's default and its form with one new layer.

    python benchmarks/ablation.py record --data FOLDERS --weights FILE --home HOME -o ablation.jsonl
    python benchmarks/ablation.py table ablation.jsonl

Folders, splits and lengths are those of `against_fastai.py`. What this project does not have (a
moving average of the weights, drop-path, a frozen first phase) is written here, as a prototype.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import against_fastai
import recordings
import timm
import torch

from nbtl_search.data.prepared import prepare
from nbtl_search.network.allocator import keep_freed_memory
from nbtl_search.training.averaging import measure_batch_norm
from nbtl_search.training.run import Run

FOLDERS = ("dtd10", "clothing10", "sign_digits")
EMA_DECAY = 0.97  # half of the weight lies on the last 23 of about 100 updates
TWO_NEW, ONE_NEW = (against_fastai.known_forms()[name] for name in ("default", "one-new"))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A setting, and the form that it changes."""

    beside: str
    dials: dict[str, Any]
    train: dict[str, Any] = field(default_factory=dict)
    drop_path: float = 0.0
    frozen: float = 0.0
    """Share of the updates in which only the classifier learns."""
    ema: bool = False


VARIANTS = {
    "default": Variant(beside="default", dials=TWO_NEW),
    "one-new": Variant(beside="one-new", dials=ONE_NEW),
    "classifier fitted first": Variant(
        beside="one-new", dials=ONE_NEW | {"head_start": "logistic"}
    ),
    "AdamW at 0.001": Variant(
        beside="default",
        dials=TWO_NEW | {"lr_high": 1e-3, "n_l2sp": 0, "alpha": 0.0, "beta": 0.01},
        train={"optimiser": "adamw"},
    ),
    "layer decay 0.87": Variant(
        beside="default",
        dials={key: value for key, value in TWO_NEW.items() if key not in {"n_low", "lr_low_ratio"}}
        | {"layer_decay": 0.87},
    ),
    "drop-path 0.1": Variant(beside="default", dials=TWO_NEW, drop_path=0.1),
    "frozen for an eighth": Variant(beside="default", dials=TWO_NEW, frozen=0.125),
    "moving average 0.97": Variant(beside="default", dials=TWO_NEW, ema=True),
}


def main() -> None:
    """Do what the first argument says."""
    options = _options()
    if options.what == "table":
        print_table(options.files)
        return
    keep_freed_memory()
    plans = [
        {"folder": folder, "variant": name, "seed": seed}
        for seed in range(options.seeds)
        for name in VARIANTS
        for folder in FOLDERS
    ]
    recordings.record(
        plans, partial(_trained, options=options), output=options.output, part=options.part
    )


def _trained(plan: recordings.Line, *, options: argparse.Namespace) -> recordings.Line:
    variant = VARIANTS[plan["variant"]]
    recipe = against_fastai.recipe_of(plan, variant.dials, options, **variant.train)
    with mock.patch.object(
        timm, "create_model", partial(timm.create_model, drop_path_rate=variant.drop_path)
    ):
        run = Run(recipe, prepared=prepare(recipe.data, home=options.home), home=options.home)
    n_updates = run.n_updates * recipe.train.epochs
    after = _ema(run) if variant.ema else _frozen(run, round(variant.frozen * n_updates))
    for _ in range(recipe.train.epochs):
        run.begin_epoch()
        for batch in run.batches():
            run.update(batch)
            after()
        run.end_epoch(None)
    if variant.ema:
        after(is_last=True)
        for _ in measure_batch_norm(run):
            pass
    return {"updates": n_updates, **against_fastai.scores_of(run, home=options.home)}


def _ema(run: Run) -> Callable[..., None]:
    parameters = list(run.network.model.parameters())
    average = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def after(*, is_last: bool = False) -> None:
        for mean, parameter in zip(average, parameters, strict=True):
            if is_last:
                parameter.copy_(mean)
            else:
                mean.lerp_(parameter, 1 - EMA_DECAY)

    return after


def _frozen(run: Run, n_updates: int) -> Callable[..., None]:
    """Put all weights below the classifier back after each of the first updates."""
    head = {id(parameter) for parameter in run.network.layers.head.parameters}
    body = [each for each in run.network.model.parameters() if id(each) not in head]
    first = [parameter.detach().clone() for parameter in body]
    n_done = 0

    @torch.no_grad()
    def after() -> None:
        nonlocal n_done
        n_done += 1
        if n_done <= n_updates:
            for parameter, value in zip(body, first, strict=True):
                parameter.copy_(value)
                run.optimiser.state.pop(parameter, None)  # its momentum

    return after


def print_table(files: list[Path]) -> None:
    """Print the gain over what a setting changes, paired by seed: validation / test."""
    found: dict[str, dict[tuple[str, int], tuple[float, float]]] = defaultdict(dict)
    for line in recordings.read(files):
        found[line["variant"]][line["folder"], line["seed"]] = line["val_top1"], line["test_top1"]
    print(f"| setting | beside | {' | '.join(FOLDERS)} | all |")
    print("|---|---|" + "---|" * (len(FOLDERS) + 1))
    for name, variant in VARIANTS.items():
        theirs = {} if name == variant.beside else found[variant.beside]
        cells = [
            _cell(
                [
                    tuple(a - b for a, b in zip(value, theirs.get(key, (0, 0)), strict=True))
                    for key, value in found[name].items()
                    if key[0] in folders and (not theirs or key in theirs)
                ],
                signed=bool(theirs),
            )
            for folders in (*((each,) for each in FOLDERS), FOLDERS)
        ]
        print(f"| {name} | {variant.beside if theirs else ''} | {' | '.join(cells)} |")


def _cell(pairs: list[Any], *, signed: bool) -> str:
    if not pairs:
        return ""
    sign = "+" if signed else ""
    parts = [
        f"{statistics.mean(values):{sign}.1f}"
        + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")
        for values in zip(*pairs, strict=True)
    ]
    return f"{' / '.join(parts)} ({len(pairs)})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("record")
    recordings.add_options(command)
    command.add_argument("--seeds", type=int, default=4)
    commands.add_parser("table").add_argument("files", type=Path, nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
