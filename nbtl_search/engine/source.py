"""Prototypes of a folder of source images: they pass through once, and only class means are kept.

A source such as ImageNet is far larger than what is transferred to, so nothing is decoded to disk.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from jaxtyping import Float32, Float64
from numpy.typing import NDArray

from nbtl_search.data.augment import normalise
from nbtl_search.data.cache import prepare
from nbtl_search.data.folder import class_files
from nbtl_search.data.images import UNREADABLE, ImageFormat, decode, evaluation_transform
from nbtl_search.data.publish import writing_below
from nbtl_search.data.survey import in_threads
from nbtl_search.engine import parts
from nbtl_search.engine.device import Placement
from nbtl_search.engine.durable import remove_abandoned
from nbtl_search.engine.features import check_pretrained, exact_float32, feature_placement
from nbtl_search.engine.model import build
from nbtl_search.engine.outputs import Output, output_at
from nbtl_search.engine.prototypes import Prototypes
from nbtl_search.errors import DataError
from nbtl_search.spec import POOLED, Dials, Recipe

Progress = Callable[[int, int], None]
BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class _Network:
    """What turns images into features."""

    output: Output
    image_format: ImageFormat
    placement: Placement

    def rows(self, files: Sequence[Path]) -> Float32[np.ndarray, "n d"]:
        """Return the features of some images.

        Raises:
            DataError: one of them cannot be decoded.
        """
        transform = evaluation_transform(self.image_format)

        def seen(file: Path) -> NDArray[np.uint8]:
            try:
                return transform(decode(file))
            except UNREADABLE as error:
                message = (
                    f"every source image can be decoded, got {str(file)!r}: {error}; remove it or "
                    "put a sound one in its place"
                )
                raise DataError(message) from error

        pixels = np.stack(list(in_threads(seen, files))).transpose(0, 3, 1, 2)
        device, memory_format = self.placement.device, self.placement.memory_format
        images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).float()
        images = normalise(images, self.image_format).to(memory_format=memory_format)
        with torch.inference_mode(), self.placement.numerics(), exact_float32():
            rows: Float32[np.ndarray, "n d"] = self.output(images).float().cpu().numpy()
        return rows


def prototypes_of_folder(
    folder: Path,
    recipe: Recipe,
    *,
    home: Path,
    layer: str = POOLED,
    progress: Progress | None = None,
    n_threads: int | None = None,
) -> Prototypes:
    """Return the prototypes of a folder of source images, one folder per class.

    Images are seen as those of the target are: same size, crop and normalisation. Where the folder
    has a `train`, only its images count. The mean of each class is kept below home as soon as it
    is known, so that what is interrupted goes on with the next class. For the arguments see
    `features.extract`.

    Raises:
        SpecError: the weights are random, or the network has no such layer.
        DataError: an image cannot be decoded, there are fewer than two classes, or no room.
        WeightsError: the weights cannot be had, or are of another network.
    """
    check_pretrained(recipe)
    folder = folder.expanduser().resolve()
    classes = {name: keys for name, keys in class_files(folder).items() if keys}
    if len(classes) < 2:
        message = (
            "a folder of source images has one folder of images per class, at least two, got "
            f"{len(classes)} in {str(folder)!r}; name another"
        )
        raise DataError(message)
    placement = feature_placement(recipe, n_threads)
    recipe = recipe.replace(dials=Dials())
    own = recipe.data.normalisation == "dataset"
    prepared = prepare(recipe.data, home=home, splits=("train",)) if own else None
    built = build(recipe, n_classes=2, home=home, placement=placement, prepared=prepared)
    network = _Network(
        output=output_at(built.model.eval(), built.layers, layer),
        image_format=built.image_format,
        placement=placement,
    )
    about = {
        "model": recipe.model.name,
        "weights_digest": built.weights_digest,
        "layer": layer,
        "image_format": asdict(built.image_format),
        "batch_size": BATCH,
        "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
    }
    means = _means(folder, classes, network, home / "features" / f"source-{_key(about)}", progress)
    return Prototypes(
        prototypes=means,
        counts=np.array([len(keys) for keys in classes.values()], dtype=np.int64),
        origin=str(folder),
        weights_digest=built.weights_digest,
        layer=layer,
    )


def _means(
    folder: Path,
    classes: dict[str, tuple[str, ...]],
    network: _Network,
    directory: Path,
    progress: Progress | None,
) -> Float64[np.ndarray, "k d"]:
    """Return the mean features of every class: those that are kept, or made now."""
    n_all, n_done, rows = sum(map(len, classes.values())), 0, []
    with writing_below(directory):
        directory.mkdir(parents=True, exist_ok=True)
        remove_abandoned(directory)
        for keys in classes.values():
            files = [folder / key for key in keys]
            part = directory / f"{_key(_listing(folder, files))}.part"
            row = parts.read(part, n=1)
            if row is None:
                parts.write(part, _mean(files, network, n_done, n_all, progress))
                row = parts.read(part, n=1)
            assert row is not None, "it was written whole"  # noqa: S101
            rows.append(row)
            n_done += len(files)
            if progress is not None:
                progress(n_done, n_all)
    return np.concatenate(rows).astype(np.float64)


def _mean(
    files: Sequence[Path],
    network: _Network,
    n_before: int,
    n_all: int,
    progress: Progress | None,
) -> Float32[np.ndarray, "1 d"]:
    total: Any = 0.0
    for start in range(0, len(files), BATCH):
        total = total + network.rows(files[start : start + BATCH]).astype(np.float64).sum(axis=0)
        if progress is not None:
            progress(n_before + min(start + BATCH, len(files)), n_all)
    mean: Float32[np.ndarray, "1 d"] = (total / len(files)).astype(np.float32)[None]
    return mean


def _listing(folder: Path, files: Sequence[Path]) -> list[list[Any]]:
    """Return what tells the images of a class from others, without reading them."""
    found = [(file.relative_to(folder).as_posix(), file.stat()) for file in files]
    return [[str(folder), key, stat.st_size, stat.st_mtime_ns] for key, stat in found]


def _key(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
