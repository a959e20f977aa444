"""Accuracy of the same network from random weights, in a stated and reduced budget."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Final

import numpy as np

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import DivergedError, SpecError
from nbtl_search.files.atomic import write_durably
from nbtl_search.files.shared_folder import writing_below
from nbtl_search.network.device import place
from nbtl_search.network.weights import RANDOM
from nbtl_search.spec import Dials, Epoch, Measured, Progress, Recipe, TrainSettings
from nbtl_search.training import checkpoint
from nbtl_search.training.run import Run, train

NAME: Final = "random_accuracy"
SCRATCH_LR: Final = 0.05
SCRATCH_BETA: Final = 1e-4
PROTOCOL: Final = "last epoch"


def scratch_recipe(recipe: Recipe, *, epochs: int, lr: float = SCRATCH_LR) -> Recipe:
    """Return the recipe of the same network from random weights, at a rate of its own.

    One rate for all layers with a short warm-up and half a cosine, and L2; images, augmentation,
    batch size, seed and arithmetic are the recipe's.
    """
    return recipe.replace(
        data=recipe.data.replace(train_on="train"),
        model=recipe.model.replace(weights=RANDOM),
        train=recipe.train.replace(
            epochs=epochs,
            schedule="cosine",
            rise=TrainSettings().rise,
            warmup_epochs=min(recipe.train.warmup_epochs, max(1, epochs // 10)),
            warmup_lr=lr / 10,
        ),
        dials=Dials(lr_high=lr, beta=SCRATCH_BETA),
    )


def random_accuracy(
    recipe: Recipe,
    *,
    prepared: Prepared,
    home: Path,
    epochs: int,
    lr: float = SCRATCH_LR,
    checkpoints: Path | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Train a recipe's network from random weights; return its last epoch's validation top-1.

    The paper's random initialisation accuracy (Plested, Shen and Gedeon, 2021, arXiv 2107.08585,
    section 4.1), in percent, at a reduced budget. The last epoch counts, not the best: the highest
    of many epochs on few images lies well above chance where there is nothing to learn, and the
    accuracy on fixed features that it is compared with has no such choice. What is interrupted
    goes on from its last epoch, and what is done is kept.

    Args:
        recipe: the images, the network and how to train; its dials and weights do not count.
        prepared: the images.
        home: below it result and checkpoints are kept.
        epochs: length of the schedule.
        lr: largest rate of the schedule.
        checkpoints: another folder for these.
        progress: called with (updates done, updates in all).

    Raises:
        SpecError: the network does not suit the images.
        DataError: the disk is full.
        OutOfMemoryError: not even one image at a time fits.
    """
    n_updates = epochs * recipe.train.updates_per_epoch(prepared.n_train)
    recipe = recipe.replace(augment=recipe.augment.for_updates(n_updates))
    scratch = scratch_recipe(recipe, epochs=epochs, lr=lr)
    directory = home / "diagnoses" / _key(scratch, prepared)
    kept = directory / "random.json"
    found = _read(kept)
    if found is not None:
        return found
    checkpoints = checkpoints or directory / "checkpoints"
    with writing_below(directory):
        measured = _measured(scratch, prepared, home, checkpoints, progress)
        directory.mkdir(parents=True, exist_ok=True)
        write_durably(kept, measured.model_dump_json(indent=2).encode())
        shutil.rmtree(checkpoints, ignore_errors=True)
    return measured


def not_trained(reason: str) -> Measured:
    """Return the measure of a training that did not take place."""
    return Measured(name=NAME, reason=reason)


def _measured(
    scratch: Recipe,
    prepared: Prepared,
    home: Path,
    checkpoints: Path,
    progress: Progress | None,
) -> Measured:
    run = Run(scratch, prepared=prepared, home=home)
    checkpoint.load_latest(checkpoints, run)
    settings = _settings(scratch, prepared) | {"updates": scratch.train.epochs * run.n_updates}
    null = _chance(prepared)
    try:
        _train(run, checkpoints, progress)
    except DivergedError as error:
        lr = scratch.dials.lr_high
        reason = f"training from random weights must stay finite, got {error} at lr {lr:g}"
        return Measured(name=NAME, reason=_one_line(reason), null=null, settings=settings)
    return Measured(name=NAME, value=run.history[-1].val_top1, null=null, settings=settings)


def _train(run: Run, checkpoints: Path, progress: Progress | None) -> None:
    n_all = run.recipe.train.epochs * run.n_updates
    for event in train(run):
        if isinstance(event, Epoch):
            checkpoint.save(checkpoints, run)
        elif progress is not None:
            progress((event.epoch - 1) * run.n_updates + event.update, n_all)


def _settings(scratch: Recipe, prepared: Prepared) -> dict[str, Any]:
    return {
        "budget": "reduced",
        "epochs": scratch.train.epochs,
        "lr": scratch.dials.lr_high,
        "beta": scratch.dials.beta,
        "schedule": scratch.train.schedule,
        "batch_size": scratch.train.batch_size,
        "n_train": prepared.n_train,
        "n_val": prepared.n_val,
        "seed": scratch.train.seed,
        "protocol": PROTOCOL,
    }


def _chance(prepared: Prepared) -> float:
    """Return the most that one and the same answer for every image can reach, in percent."""
    return 100 * float(np.bincount(prepared.labels("val")).max()) / prepared.n_val


def _key(scratch: Recipe, prepared: Prepared) -> str:
    """Name a training by all that its result follows from; where the images lie is not part."""
    plain = scratch.model_dump(mode="json", exclude={"data": {"dataset", "root"}})
    del plain["train"]["n_loaders"]
    placement = place(scratch.train)
    plain |= {
        "measure": NAME,
        "protocol": PROTOCOL,
        "data_digest": prepared.digest,
        "device": placement.device.type,
        "bf16": placement.bf16,
        "checkpoints": checkpoint.VERSION,
    }
    if placement.mixed:  # only then: what was kept under a key without it stays valid
        plain["mixed"] = True
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> Measured | None:
    with contextlib.suppress(FileNotFoundError, UnicodeDecodeError, SpecError):
        return Measured.parse_json(path.read_text("utf-8"))
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())
