"""Short runs of a small network on folders of photographs, on one CPU thread."""

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import DivergedError
from nbtl_search.spec import Epoch, Recipe
from nbtl_search.training.run import Run, train

Settings = dict[str, Any]
MODEL = "mobilenetv2_100"


def recipe_on(
    folder: Path,
    *,
    weights: Path,
    home: Path,
    data: Settings,
    train: Settings,
    dials: Settings,
    strength: float = 0.0,
    model: str = MODEL,
) -> Recipe:
    """Return the recipe of a run on a folder, whose classes may stand in a labels.csv.

    Args:
        folder: of photographs.
        weights: of the model.
        home: below it a folder per class is made of a labels.csv.
        data: settings beside the folder.
        train: settings beside device and threads.
        dials: of the form.
        strength: of the augmentation.
        model: timm's name of the network.
    """
    folder = folder.resolve()
    if (folder / "labels.csv").exists():
        folder = _by_class(folder, home / f"{folder.name}_by_class")
    return Recipe.parse(
        {
            "data": {"dataset": str(folder), **data},
            "model": {"name": model, "weights": str(weights.resolve())},
            "augment": {"strength": strength},
            "train": {"device": "cpu", "n_threads": 1, **train},
            "dials": dials,
        }
    )


def _by_class(folder: Path, made: Path) -> Path:
    """Copy images whose classes stand in labels.csv into a folder per class."""
    if not made.exists():
        half_made = made.with_suffix(".part")
        with (folder / "labels.csv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                source = folder / row["image"]
                target = half_made / row["label"] / source.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
        half_made.rename(made)
    return made


def curve_of(recipe: Recipe, *, home: Path, n_points: int | None = None) -> Settings:
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
