"""Recordings of many short runs: a line of JSON for each, made once, in parts, over days.

A plan is a small dictionary that names a run. A line is its plan and what the run gave, so that a
recording which was stopped goes on where it was, and parts are joined by reading their files.
Nothing of this project is imported here, as the environments of other tools record with it too.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]
RESULTS = frozenset(
    {
        "n_train",
        "n_val",
        "updates",
        "val_top1",
        "dials",
        "error",
        "n_test",
        "test_top1",
        "spent",
        "regret",
        "bias",
        "covered",
    }
)
"""What a line has beside its plan."""


def record(
    plans: list[Line], made: Callable[[Line], Line], *, output: Path, part: str = "1/1"
) -> None:
    """Make every k-th plan's line that the output does not have; `part` is first/k."""
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
