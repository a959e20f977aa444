"""Predictions: class probabilities of image files, from an exported folder alone.

Also the image files that arguments name (files, folders, globs), and the class their folder says.
"""

import glob
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

import numpy as np
import timm.data
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from nbtl_search.data import images
from nbtl_search.data.folder import EXTENSIONS
from nbtl_search.data.images import ImageFormat
from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.exports.export import loaded
from nbtl_search.exports.model_folder import labels_of, members_of, read_config
from nbtl_search.network.device import place
from nbtl_search.spec import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file."""

    file: Path
    folders: tuple[str, ...]
    """Where it lies in the folder named: subfolders from the top, then the folder itself."""


def find_pictures(arguments: Iterable[str | Path]) -> list[Picture]:
    """List the images of files, folders (recursively, hidden ones left out) and globs, once each.

    A file that is named itself is taken whatever its extension.

    Raises:
        DataError: an argument names nothing, or a folder without images.
    """
    found: dict[Path, Picture] = {}
    for argument in arguments:
        for picture in _of(str(argument)):
            found.setdefault(picture.file, picture)
    return list(found.values())


def true_labels(pictures: Sequence[Picture], labels: Sequence[str]) -> list[int | None]:
    """Return the class that a folder of each picture names; None where none does."""
    known = {_composed(name): index for index, name in enumerate(labels)}
    return [
        next((known[name] for name in map(_composed, picture.folders) if name in known), None)
        for picture in pictures
    ]


def _of(argument: str) -> list[Picture]:
    path = Path(argument).expanduser()
    if path.exists():
        pictures = _at(path)
    else:
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 it may be absolute
        pictures = [picture for match in matches for picture in _at(Path(match))]
        pictures = [picture for picture in pictures if _is_image(picture.file.name)]
    if not pictures:
        message = (
            "an image argument is a file, a folder with images or a glob that matches some, got "
            f"{argument!r}; check the spelling"
        )
        raise DataError(message)
    return pictures


def _at(path: Path) -> list[Picture]:
    return list(_inside(path)) if path.is_dir() else [Picture(file=path, folders=())]


def _inside(folder: Path) -> Iterator[Picture]:
    own = folder.resolve().name
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        inside = Path(directory).relative_to(folder).parts
        for name in sorted(files):
            if _is_image(name):
                yield Picture(file=Path(directory, name), folders=(*inside, own))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _composed(name: str) -> str:
    """Return one spelling of names that file systems spell differently (macOS decomposes)."""
    return unicodedata.normalize("NFC", name)


Probabilities = NDArray[np.float64]
Transform = Callable[[Image.Image], Tensor]

MAX_READERS = 8
N_CROPS = 10


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model makes of one file: probabilities, or why there are none."""

    file: Path
    probabilities: Probabilities | None
    """One per class, sum 1; None where the file is no sound image."""
    error: str | None = None

    def best(self, k: int) -> list[tuple[int, float]]:
        """Return the k most probable classes, the most probable first; of equals, the lower."""
        if self.probabilities is None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(int(label), float(self.probabilities[label])) for label in order]


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The networks of an exported folder, ready to predict; several are averaged by softmax."""

    labels: tuple[str, ...]
    models: tuple[nn.Module, ...]
    data_config: dict[str, Any]
    """What timm's transform takes."""
    device: torch.device

    @property
    def image_format(self) -> ImageFormat:
        """Return what the networks expect of an image, for crops of our own.

        Raises:
            SpecError: they expect something that ten crops are not defined for.
        """
        config = self.data_config
        _, height_px, width_px = config["input_size"]
        if height_px != width_px or config["crop_mode"] != "center":
            message = (
                "ten crops need a square input and crop_mode == 'center', got "
                f"{height_px} x {width_px} and {config['crop_mode']!r}; predict without --ten-crop"
            )
            raise SpecError(message)
        return ImageFormat(
            image_px=int(height_px),
            crop_pct=float(config["crop_pct"]),
            interpolation=str(config["interpolation"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )


def open_classifier(folder: Path, *, device: str = "auto") -> Classifier:
    """Load an exported folder: timm's local-dir layout with label names, or a seed ensemble.

    Args:
        folder: of config.json and model.safetensors, or of ensemble.json.
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        WeightsError: the folder is no such model, or damaged.
        SpecError: the device is not on this machine.
    """
    try:
        where = place(TrainSettings(device=device, precision="fp32")).device
    except SpecError as error:
        raise SpecError(str(error).removeprefix("train.")) from error
    folders = members_of(folder.expanduser())
    labels = [labels_of(read_config(member), member) for member in folders]
    models = [loaded(member) for member in folders]
    configs = [timm.data.resolve_model_data_config(model) for model in models]
    if any(found != labels[0] for found in labels) or any(c != configs[0] for c in configs):
        _broken(folder, "members that differ in their classes or their preprocessing")
    if configs[0]["input_size"][0] != 3:
        _broken(folder, f"input of {configs[0]['input_size'][0]} channels, where 3 are read")
    return Classifier(
        labels=tuple(labels[0]),
        models=tuple(model.to(where) for model in models),
        data_config=configs[0],
        device=where,
    )


def predict(
    classifier: Classifier,
    files: Sequence[Path],
    *,
    batch_size: int = 32,
    ten_crop: bool = False,
) -> Iterator[Prediction]:
    """Yield the prediction of each file, in order; of a damaged file, its error.

    Args:
        classifier: from `open_classifier`.
        files: the images.
        batch_size: images, or crops of images, per forward.
        ten_crop: average the softmax over ten crops instead of taking the centre crop.

    Raises:
        SpecError: ten crops are not defined for this model.
        DataError: the device's memory does not hold a batch.
    """
    read = _ten_crop_reader(classifier) if ten_crop else _centre_reader(classifier)
    n_files = max(1, batch_size // N_CROPS) if ten_crop else batch_size
    # Chunk by chunk: the memory holds one batch, however many images there are.
    with ThreadPoolExecutor(min(MAX_READERS, os.cpu_count() or 1)) as pool:
        for start in range(0, len(files), n_files):
            chunk = files[start : start + n_files]
            inputs = list(pool.map(lambda file: _attempt(read, file), chunk))
            crops = [crop for crop in inputs if isinstance(crop, Tensor)]
            found = iter(_mean_softmax(classifier, crops, batch_size) if crops else [])
            for file, result in zip(chunk, inputs, strict=True):
                if isinstance(result, str):
                    yield Prediction(file=file, probabilities=None, error=result)
                else:
                    yield Prediction(file=file, probabilities=next(found))


def _attempt(read: Callable[[Path], Tensor], file: Path) -> Tensor | str:
    try:
        return read(file)
    except UnidentifiedImageError:
        return "no image in a format that can be read"
    except images.UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return (next(iter(reason.splitlines()), "") or type(error).__name__)[:200]


def _centre_reader(classifier: Classifier) -> Callable[[Path], Tensor]:
    """Return timm's own evaluation, as crops (1, 3, height, width)."""
    transform: Transform = timm.data.create_transform(**classifier.data_config, is_training=False)
    return lambda file: transform(images.decode(file))[None]


def _ten_crop_reader(classifier: Classifier) -> Callable[[Path], Tensor]:
    image_format = classifier.image_format
    mean = torch.tensor(image_format.mean)[:, None, None]
    std = torch.tensor(image_format.std)[:, None, None]

    def read(file: Path) -> Tensor:
        crops = images.ten_crop(np.asarray(images.decode(file)), image_format)
        return (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - mean) / std

    return read


def _mean_softmax(
    classifier: Classifier, crops: Sequence[Tensor], batch_size: int
) -> list[Probabilities]:
    """Return the mean softmax over members and crops of each image, computed in float64."""
    batch = torch.cat(list(crops))
    try:
        total = torch.stack(
            [
                torch.cat([_softmax(model, part, classifier) for part in batch.split(batch_size)])
                for model in classifier.models
            ]
        ).mean(0)
    except torch.OutOfMemoryError as error:
        message = (
            f"the memory of {classifier.device} must hold a batch, got {batch_size} images that "
            "it does not; pass a smaller --batch-size"
        )
        raise DataError(message) from error
    return [part.mean(0).numpy() for part in total.split([len(crop) for crop in crops])]


def _softmax(
    model: nn.Module, batch: Float[Tensor, "batch 3 _ _"], classifier: Classifier
) -> Float[Tensor, "batch classes"]:
    with torch.inference_mode():
        logits: Tensor = model(batch.to(classifier.device)).cpu()
    if not bool(torch.isfinite(logits).all()):  # NaN has an argmax, too, which says nothing
        _broken(Path(), "logits that are not finite")
    return logits.double().softmax(1)


def _broken(folder: Path, got: str) -> Never:
    message = f"a model folder is as `export` wrote it, got {str(folder)!r}: {got}; export it again"
    raise WeightsError(message)
