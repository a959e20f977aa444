"""Prototypes of the source: class means of features of the images that the weights learnt from.

They come from an .npz file (`prototypes` k x d, `counts` k, `weights_digest`, `layer`), or from a
folder of source images with one folder per class. Those images pass through once, and only class
means are kept: a source such as ImageNet is far larger than what is transferred to.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Never

import numpy as np
import PIL
import timm
import torch
from jaxtyping import Float32, Float64, Int64
from numpy.typing import NDArray

from nbtl_search.data.augment import normalise
from nbtl_search.data.folder import class_files
from nbtl_search.data.images import UNREADABLE, ImageFormat, decode, evaluation_transform
from nbtl_search.data.survey import in_threads
from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.files import arrays
from nbtl_search.files.atomic import remove_abandoned, write_durably
from nbtl_search.files.shared_folder import writing_below
from nbtl_search.network.device import Placement
from nbtl_search.network.model import SourceNetwork
from nbtl_search.source.features import Output, exact_float32, output_at
from nbtl_search.spec import POOLED, Progress

SUFFIX: Final = ".npz"
_UNREADABLE = (OSError, ValueError, EOFError, LookupError, TypeError, zipfile.BadZipFile)
BATCH: Final = 64


@dataclass(frozen=True, kw_only=True)
class Prototypes:
    """One mean feature per source class, and how many images it is the mean of."""

    prototypes: Float64[np.ndarray, "k d"]
    counts: Int64[np.ndarray, " k"]
    origin: str
    weights_digest: str | None = None
    """None where the file does not say."""
    layer: str | None = None


@dataclass(frozen=True, kw_only=True)
class SourceImages:
    """Where source prototypes come from: an .npz file, or a folder of images by class."""

    place: Path
    min_images: int = 200
    """Source classes with fewer are left out."""
    save: Path | None = None
    """An .npz file to write the prototypes of a folder to."""

    def check(self) -> None:
        """Refuse what would only be found after minutes of work.

        Raises:
            DataError: it is neither a folder nor an .npz file, or prototypes cannot be saved.
            SpecError: the number of images is negative.
        """
        if self.min_images < 0:
            message = f"source images of a class >= 0, got {self.min_images}; 0 takes all classes"
            raise SpecError(message)
        if not self.place.is_dir() and not (self.place.suffix == SUFFIX and self.place.is_file()):
            message = (
                "--source must be an .npz file of prototypes or a folder with one folder of images "
                f"per class, got {str(self.place)!r}; name one that exists"
            )
            raise DataError(message)
        if self.save is not None:
            if not self.place.is_dir():
                message = (
                    "prototypes are saved of a folder of source images, got "
                    f"{str(self.place)!r}; give a folder by --source"
                )
                raise DataError(message)
            check_target(self.save)


def read_prototypes(file: Path) -> Prototypes:
    """Read prototypes from an .npz file; nothing in it is executed.

    Raises:
        DataError: it cannot be read, or does not hold finite prototypes with counts.
    """
    try:
        # From memory: numpy leaves a file that is cut open.
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            prototypes = np.asarray(content["prototypes"], dtype=np.float64)
            counts = np.asarray(content["counts"])
            digest, layer = (_text(content, key) for key in ("weights_digest", "layer"))
    except _UNREADABLE as error:
        said = " ".join(str(error).split())[:200]
        _refuse(file, f"{type(error).__name__}: {said}", cause=error)
    if prototypes.ndim != 2 or len(prototypes) < 2 or counts.shape != prototypes.shape[:1]:
        _refuse(file, f"shapes {prototypes.shape} and {counts.shape}")
    if counts.dtype.kind not in "iuf" or not ((counts >= 0) & (counts < 2**53)).all():
        _refuse(file, f"counts of type {counts.dtype}, negative or beyond 2^53")
    if not np.isfinite(prototypes).all():
        _refuse(file, "prototypes that are not finite")
    return Prototypes(
        prototypes=prototypes,
        counts=counts.astype(np.int64),
        origin=str(file),
        weights_digest=digest,
        layer=layer,
    )


def save_prototypes(made: Prototypes, file: Path) -> None:
    """Write prototypes to an .npz file, whole or not at all.

    Raises:
        DataError: it has another ending, or cannot be written.
    """
    check_target(file)
    content = io.BytesIO()
    arrays: dict[str, Any] = {"prototypes": made.prototypes, "counts": made.counts}
    about = {"weights_digest": made.weights_digest, "layer": made.layer}
    arrays |= {key: np.array(value) for key, value in about.items() if value is not None}
    np.savez(content, **arrays)
    try:
        write_durably(file, content.getbuffer())
    except OSError as error:
        message = f"prototypes must be written whole, got {error} at {str(file)!r}; make room"
        raise DataError(message) from error


def check_target(file: Path) -> None:
    """Make sure that prototypes can be written to this file, before any work.

    Raises:
        DataError: it is no .npz, or its folder does not exist.
    """
    if file.suffix != SUFFIX or not file.parent.is_dir():
        message = (
            f"prototypes are written to *.npz in a folder that exists, got {str(file)!r}; name "
            "such a file"
        )
        raise DataError(message)


def check_matches(source: Prototypes, *, weights_digest: str, layer: str) -> None:
    """Refuse prototypes of other weights or of another layer, where they say what they are of.

    Raises:
        WeightsError: they are.
    """
    ours = {"weights": weights_digest, "layer": layer}
    theirs = {"weights": source.weights_digest, "layer": source.layer}
    for what, value in theirs.items():
        if value is not None and value != ours[what]:
            message = (
                f"source prototypes must be of the same {what} as the target's features "
                f"({ours[what][:12]}), got {value[:12]} in {source.origin!r}; make them anew"
            )
            raise WeightsError(message)


def check_width(source: Prototypes, *, n_features: int) -> None:
    """Refuse prototypes with another number of features.

    Raises:
        DataError: they have.
    """
    width = source.prototypes.shape[1]
    if width != n_features:
        message = (
            f"source prototypes must have d == {n_features} features as the target's, got {width} "
            f"in {source.origin!r}; make them with the same network and layer"
        )
        raise DataError(message)


def prototypes_of_folder(
    folder: Path,
    source: SourceNetwork,
    *,
    home: Path,
    layer: str = POOLED,
    progress: Progress | None = None,
) -> Prototypes:
    """Return the prototypes of a folder of source images, one folder per class.

    Images are seen as those of the target are: same size, crop and normalisation. Where the folder
    has a `train`, only its images count. The mean of each class is kept below home as soon as it
    is known, so that what is interrupted goes on with the next class. For the arguments see
    `features.extract`.

    Raises:
        SpecError: the network has no such layer.
        DataError: an image cannot be decoded, there are fewer than two classes, or no room.
    """
    folder = folder.expanduser().resolve()
    classes = {name: keys for name, keys in class_files(folder).items() if keys}
    if len(classes) < 2:
        message = (
            "a folder of source images has one folder of images per class, at least two, got "
            f"{len(classes)} in {str(folder)!r}; name another"
        )
        raise DataError(message)
    network = _Network(
        output=output_at(source.model, layer),
        image_format=source.image_format,
        placement=source.placement,
    )
    about = {
        "model": source.name,
        "weights_digest": source.weights_digest,
        "layer": layer,
        "image_format": asdict(source.image_format),
        "batch_size": BATCH,
        "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
    }
    means = _means(folder, classes, network, home / "features" / f"source-{_key(about)}", progress)
    return Prototypes(
        prototypes=means,
        counts=np.array([len(keys) for keys in classes.values()], dtype=np.int64),
        origin=str(folder),
        weights_digest=source.weights_digest,
        layer=layer,
    )


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
            row = arrays.read(part, n=1)
            if row is None:
                arrays.write(part, _mean(files, network, n_done, n_all, progress))
                row = arrays.read(part, n=1)
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


def _text(content: Any, key: str) -> str | None:
    return str(content[key]) if key in content else None


def _refuse(file: Path, got: str, *, cause: BaseException | None = None) -> Never:
    message = (
        "a file of source prototypes is an .npz with finite prototypes (k x d, k >= 2) and counts "
        f"(k), got {str(file)!r}: {got}; make it anew, or name a folder of images"
    )
    raise DataError(message) from cause
