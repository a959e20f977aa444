"""Train a few forms inside several settings on folders of photographs, and record every curve.

    python benchmarks/settings.py --data FOLDERS --weights FILE --home HOME -o settings.jsonl

Settings are what surrounds the dials: schedule, warm-up, augmentation. Each line of the output is
one run. What is in the file already is not trained again, so that a recording that was stopped goes
on; two processes share the work with `--part 1/2` and `--part 2/2`, each with an output of its own.
`--table FILE...` prints what such files hold.
"""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import recordings
import short_runs

from nbtl_search.network.allocator import keep_freed_memory
from nbtl_search.spec import Recipe

# Folder below --data, batch size, epochs for about 100 updates. Half of the images of a folder that
# brings no split are for validation; the test images of one that does are not looked at.
FOLDERS: dict[str, tuple[str, int, int]] = {
    "dtd10": ("dtd10/images", 16, 8),
    "clothing10": ("clothing10", 32, 6),
    "caltech101_25": ("caltech101_25/101_ObjectCategories", 32, 7),
}

FORMS: dict[str, dict[str, Any]] = {
    # One rate, one new layer, L2: what `default` of a folder study was.
    "one rate": {"lr_high": 0.0025, "beta": 5e-4},
    # The same with the rates that fastai gives: a high one above, a tenth of it in the first half.
    "two rates": {"lr_high": 0.01, "n_low": 9, "lr_low_ratio": 0.1, "beta": 5e-4},
    "two rates, two new layers": {
        "reinit_layers": 2,
        "lr_high": 0.01,
        "n_low": 9,
        "lr_low_ratio": 0.1,
        "beta": 5e-4,
    },
    # Known from earlier runs on dtd10.
    "two rates, two new layers, L2-SP": {
        "reinit_layers": 2,
        "lr_high": 0.01,
        "n_low": 9,
        "lr_low_ratio": 0.1,
        "n_l2sp": 11,
        "alpha": 1e-3,
        "beta": 1e-3,
    },
}

SHIPPED = {"schedule": "cosine", "warmup_epochs": 3}
CYCLE = {"schedule": "one_cycle"}
# Settings by name: [train], and the strength of the augmentation.
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {
    "cosine, 3 epochs of warm-up, strength 1": (SHIPPED, 1.0),
    "cosine, 3 epochs of warm-up, strength 0": (SHIPPED, 0.0),
    "cosine, 1 epoch of warm-up, strength 0": ({**SHIPPED, "warmup_epochs": 1}, 0.0),
    "one cycle, strength 0": (CYCLE, 0.0),
    "one cycle, strength 0.5": (CYCLE, 0.5),
    "one cycle, strength 1": (CYCLE, 1.0),
}
TRIED = (
    *(("one rate", name) for name in SETTINGS),
    *(("two rates, two new layers, L2-SP", name) for name in SETTINGS),
    ("two rates", "one cycle, strength 0"),
    ("two rates, two new layers", "one cycle, strength 0"),
)


def main() -> None:
    """Record, or print the table."""
    options = _options()
    if options.table:
        for row in _table(options.table):
            print(row)
        return
    keep_freed_memory()
    wanted = [
        {"folder": folder, "form": form, "settings": settings, "times": times, "seed": seed}
        for times in options.times
        for seed in range(options.seeds)
        for folder in options.folders
        for form, settings in TRIED
    ]
    recordings.record(
        wanted,
        lambda plan: short_runs.curve_of(_recipe(plan, options), home=options.home),
        output=options.output,
        part=options.part,
    )


def _recipe(plan: dict[str, Any], options: argparse.Namespace) -> Recipe:
    folder, batch_size, epochs = FOLDERS[plan["folder"]]
    train_settings, strength = SETTINGS[plan["settings"]]
    return short_runs.recipe_on(
        options.data / folder,
        weights=options.weights,
        home=options.home,
        data={"val_fraction": 0.5, "test_fraction": 0.0, "image_px": options.image_px},
        train={
            "epochs": epochs * plan["times"],
            "batch_size": batch_size,
            "seed": plan["seed"],
            **train_settings,
        },
        dials=FORMS[plan["form"]],
        strength=strength,
    )


def _table(paths: list[Path]) -> Iterator[str]:
    """Yield the rows of a table: the last epoch's accuracy, mean and spread over the seeds."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for line in recordings.read(paths):
        if line.get("error"):
            message = f"runs that ended, got one that diverged: {line}; leave it out by hand"
            raise ValueError(message)
        column = (line["folder"], line["updates"])
        found[line["form"], line["settings"]][column].append(line["val_top1"][-1])
    columns = sorted({column for row in found.values() for column in row})
    yield "| form | settings | " + " | ".join(f"{name}, {n} updates" for name, n in columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for (form, settings), row in found.items():
        cells = [_cell(row.get(column, [])) for column in columns]
        yield f"| {form} | {settings} | " + " | ".join(cells) + " |"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f} ({len(values)})"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-px", type=int, default=112)
    parser.add_argument("--folders", nargs="*", default=list(FOLDERS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--times", type=int, nargs="*", default=[1], help="of 100 updates")
    parser.add_argument("--table", type=Path, nargs="*")
    recordings.add_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
