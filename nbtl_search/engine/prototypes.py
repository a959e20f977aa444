"""Source prototypes: class means of the features of the images that the weights were trained on.

They come from an .npz file (`prototypes` k x d, `counts` k, `weights_digest`, `layer`), or from a
folder of source images with one folder per class.
"""

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Never

import numpy as np
from jaxtyping import Float64, Int64

from nbtl_search.engine.durable import write_durably
from nbtl_search.errors import DataError, SpecError, WeightsError

SUFFIX: Final = ".npz"
_UNREADABLE = (OSError, ValueError, EOFError, LookupError, TypeError, zipfile.BadZipFile)


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
class Source:
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


def _text(content: Any, key: str) -> str | None:
    return str(content[key]) if key in content else None


def _refuse(file: Path, got: str, *, cause: BaseException | None = None) -> Never:
    message = (
        "a file of source prototypes is an .npz with finite prototypes (k x d, k >= 2) and counts "
        f"(k), got {str(file)!r}: {got}; make it anew, or name a folder of images"
    )
    raise DataError(message) from cause
