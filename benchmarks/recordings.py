"""Recordings of many short runs: a line of JSON for each, made once, in parts, over days.

A plan is a small dictionary that names a run. A line is its plan and what the run gave, so that a
recording which was stopped goes on where it was, and parts are joined by reading their files.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import DivergedError
from nbtl_search.network.allocator import keep_freed_memory
from nbtl_search.spec import Epoch, Recipe
from nbtl_search.training.run import Run, train

Line = dict[str, Any]
RESULTS = frozenset(
    {"n_train", "n_val", "updates", "val_top1", "dials", "error", "n_test", "test_top1"}
)
"""What a line has beside its plan."""


def record(
    plans: list[Line], made: Callable[[Line], Line], *, output: Path, part: str = "1/1"
) -> None:
    """Make every k-th plan's line that the output does not have; `part` is first/k."""
    keep_freed_memory()
    done = {_key(line) for line in read([output])}
    first, n_parts = (int(number) for number in part.split("/"))
    for plan in plans[first - 1 :: n_parts]:
        if _key(plan) not in done:
            line = plan | made(plan)
            with output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read(paths: Iterable[Path]) -> list[Line]:
    """Return the lines of all files, each plan once; nothing of a file that does not exist."""
    texts = (path.read_text("utf-8") for path in paths if path.exists())
    lines = [json.loads(row) for text in texts for row in text.splitlines()]
    return list({_key(line): line for line in lines}.values())


def curve_of(recipe: Recipe, *, home: Path, n_points: int | None = None) -> Line:
    """Train a recipe to its end, and return its validation top-1 after each epoch.

    A run that diverges has the epochs before that, and its error.

    Args:
        recipe: to train.
        home: below it decoded images are kept.
        n_points: about so many epochs are validated, the last of all among them; the others have
            None. All by default.
    """
    home.mkdir(parents=True, exist_ok=True)
    prepared = prepare(recipe.data, home=home)
    run = Run(recipe, prepared=prepared, home=home)
    curve: list[float | None] = []
    failed = {}
    try:
        curve.extend(epoch.val_top1 for epoch in epochs_of(run, n_points))
    except DivergedError as error:
        failed = {"error": str(error)}
    return {
        "n_train": prepared.n_train,
        "n_val": prepared.n_val,
        "updates": run.n_updates * recipe.train.epochs,
        "val_top1": curve,
        **failed,
    }


def epochs_of(run: Run, n_points: int | None) -> Iterator[Epoch]:
    """Yield the epochs of `train`, most of them not validated, which changes nothing else."""
    if n_points is None:
        yield from (event for event in train(run) if isinstance(event, Epoch))
        return
    n_epochs = run.recipe.train.epochs
    every = max(1, n_epochs // n_points)
    for epoch in range(1, n_epochs + 1):
        run.begin_epoch()
        for batch in run.batches():
            run.update(batch)
        is_validated = (n_epochs - epoch) % every == 0
        scores = list(run.scores()) if is_validated else []
        yield run.end_epoch(scores[-1] if scores else None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what every recording is told."""
    parser.add_argument("--data", type=Path, help="the folders of photographs")
    parser.add_argument("--weights", type=Path, help="of MobileNetV2")
    parser.add_argument("--home", type=Path, help="below it decoded images are kept")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("-o", "--output", type=Path)


def _key(line: Line) -> str:
    plan = {name: value for name, value in line.items() if name not in RESULTS}
    return json.dumps(plan, sort_keys=True)
