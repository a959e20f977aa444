"""Pre-training of the weights that ship with the package, on textures that the demo never shows.

The loop is the one of every trial, from random weights, and a recipe holds every setting: the same
seed on the same kind of processor writes the same file, bit for bit.
"""

import json
import os
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import Final

import safetensors.torch

from nbtl_search.data.prepared import prepare
from nbtl_search.errors import WeightsError
from nbtl_search.spec import (
    AugmentSettings,
    DataSettings,
    Dials,
    Epoch,
    ModelSettings,
    Progress,
    Recipe,
    TrainSettings,
)
from nbtl_search.training.run import Run, train

MODEL: Final = "test_resnet"


def source_recipe(*, seed: int = 0) -> Recipe:
    """Return the recipe of the shipped weights: 28 source families, from random weights.

    The seed is that of the images as well as of initialisation and order.
    """
    return Recipe(
        data=DataSettings(dataset="textures-source", split_seed=seed, image_px=64),
        model=ModelSettings(name=MODEL, weights="random"),
        augment=AugmentSettings(
            crop_scale=(0.5, 1.0), randaugment="", mixup=0.0, erasing=0.0, label_smoothing=0.1
        ),
        train=TrainSettings(
            epochs=16,
            schedule="cosine",
            warmup_epochs=1,
            warmup_lr=0.01,
            device="cpu",  # other devices and precisions round otherwise
            precision="fp32",
            n_threads=1,
            seed=seed,
        ),
        dials=Dials(lr_high=0.1, beta=1e-4),
    )


def pretrain(
    recipe: Recipe, file: Path, *, home: Path, progress: Progress | None = None
) -> Generator[Epoch, None, None]:
    """Train a recipe, yield its epochs, and write the weights of the last one to a file.

    Args:
        recipe: what to train; `source_recipe` returns that of the shipped weights.
        file: a .safetensors file; its metadata hold the recipe and the last epoch's accuracy.
        home: below it the images are rendered.
        progress: of the rendering.

    Raises:
        WeightsError: the file cannot be written, or its name ends otherwise.
        DataError: the images cannot be had.
        DivergedError: the loss is not finite.
    """
    _check(file)
    run = Run(recipe, prepared=prepare(recipe.data, home=home, progress=progress), home=home)
    for event in train(run):
        if isinstance(event, Epoch):
            yield event
    _write(run, file)


def _check(file: Path) -> None:
    """Refuse now what would fail when all the work is done."""
    if file.suffix != ".safetensors":
        message = f"weights are written as *.safetensors, got {str(file)!r}; name such a file"
        raise WeightsError(message)
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        message = (
            f"weights are written into a folder that exists and is writable, got "
            f"{str(file.parent)!r}; make it first"
        )
        raise WeightsError(message)


def _write(run: Run, file: Path) -> None:
    """Write the weights whole or not at all.

    One key of metadata only: of several, the library may write any order, and so other bytes.
    """
    origin = {"recipe": run.recipe.plain(), "val_top1": run.history[-1].val_top1}
    metadata = {"nbtl-search": json.dumps(origin, sort_keys=True)}
    state = {name: value.contiguous() for name, value in run.network.model.state_dict().items()}
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        safetensors.torch.save_file(state, temporary, metadata=metadata)
        temporary.chmod(0o644)  # the library makes it for its owner alone
        temporary.replace(file)
    except (OSError, safetensors.SafetensorError) as error:
        message = f"weights must be written whole, got {error} at {str(file)!r}; make room"
        raise WeightsError(message) from error
    finally:
        temporary.unlink(missing_ok=True)
