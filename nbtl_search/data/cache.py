"""Datasets decoded once: `prepare` makes them, every process of a node shares them."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from nbtl_search.data import datasets, packed
from nbtl_search.data.images import Pixels
from nbtl_search.data.prepared import Prepared, counted, decoded
from nbtl_search.data.publish import publish
from nbtl_search.data.splits import Item, Manifest
from nbtl_search.data.survey import Progress, Survey, in_threads, read_survey, survey
from nbtl_search.spec import DataSettings

__all__ = ["SEARCH_SPLITS", "Prepared", "open_prepared", "prepare"]

SEARCH_SPLITS = ("train", "val")


def prepare(
    data: DataSettings,
    *,
    home: Path,
    skip_corrupt: bool = False,
    progress: Progress | None = None,
    splits: Sequence[str] = SEARCH_SPLITS,
    download: bool = True,
    cache: Path | None = None,
) -> Prepared:
    """Decode a dataset into files that all processes of a node share; what is there is reused.

    Args:
        data: which dataset, its split, and the size of the network's input.
        home: the folder for downloads and decoded images.
        skip_corrupt: leave damaged images out and record it, rather than refuse.
        progress: called with (done, total) in each phase: reading, then decoding.
        splits: which splits may be read; ask for test only to evaluate on it.
        download: fetch a registered dataset that is not on disk.
        cache: where decoded images lie instead of `home`, such as a disk of this node.

    Raises:
        DataError: the dataset cannot be had, is damaged or incomplete, or the disk is full.
    """
    listed = datasets.manifest(data, home=home, download=download)
    found = survey(
        listed, directory=home / "data" / "surveys", skip_corrupt=skip_corrupt, progress=progress
    )
    manifest = _sound(listed, found)
    directory = _directory(cache or home, found)
    n_all, n_done = sum(len(manifest.items(split)) for split in splits), 0
    for split in splits:
        items = manifest.items(split)
        side = _side(data, items, found)
        publish(
            directory / _pack_name(split, side),
            partial(_write_pack, items, manifest, side, (n_done, n_all, progress)),
            n_bytes=_n_bytes(items, found, side),
        )
        n_done += len(items)
    return _opened(data, manifest, found, directory, splits)


def open_prepared(
    data: DataSettings, *, home: Path, splits: Sequence[str] = SEARCH_SPLITS
) -> Prepared | None:
    """Return the dataset if it has been prepared from the files that are there now, else None.

    Raises:
        DataError: the dataset is unknown, or its folder is not as it must be.
    """
    known = data.dataset in datasets.REGISTRY and datasets.REGISTRY[data.dataset].marker
    if known and datasets.locate(data, home=home) is None:
        return None
    listed = datasets.manifest(data, home=home, download=False)
    found = read_survey(listed, directory=home / "data" / "surveys")
    if found is None:
        return None
    manifest, directory = _sound(listed, found), _directory(home, found)
    names = [_pack_name(s, _side(data, manifest.items(s), found)) for s in splits]
    if not all((directory / name).exists() for name in names):
        return None
    return _opened(data, manifest, found, directory, splits)


def _opened(
    data: DataSettings, manifest: Manifest, found: Survey, directory: Path, splits: Sequence[str]
) -> Prepared:
    packs = {
        split: packed.Packed(
            directory / _pack_name(split, _side(data, manifest.items(split), found))
        )
        for split in splits
    }
    return Prepared(
        manifest=manifest,
        skipped=found.skipped,
        directory=directory,
        packs=packs,
        sizes=found.sizes,
    )


def _sound(listed: Manifest, found: Survey) -> Manifest:
    return replace(listed.without(found.skipped), digest=found.digest)


def _directory(home: Path, found: Survey) -> Path:
    # Another Pillow may decode or resize otherwise: its pixels are other pixels.
    return home / "data" / f"{found.digest[:32]}-pillow-{PIL.__version__}"


def _side(data: DataSettings, items: Iterable[Item], found: Survey) -> int | None:
    """Return the shorter side that larger images are reduced to; None if no image is larger."""
    limit = 2 * data.image_px
    return limit if any(min(found.sizes[item.key]) > limit for item in items) else None


def _pack_name(split: str, side: int | None) -> str:
    return f"{split}-full" if side is None else f"{split}-{side}"


def _reduced(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    height, width = size
    if side is None or min(size) <= side:
        return height, width
    return round(height * side / min(size)), round(width * side / min(size))


def _n_bytes(items: Iterable[Item], found: Survey, side: int | None) -> int:
    sizes = [_reduced(found.sizes[item.key], side) for item in items]
    return sum(height * width * 3 for height, width in sizes)


def _write_pack(
    items: Sequence[Item],
    manifest: Manifest,
    side: int | None,
    count: tuple[int, int, Progress | None],
    target: Path,
) -> None:
    images = in_threads(lambda item: _training_image(decoded(item, manifest), side), items)
    packed.write(target, counted(images, *count))


def _training_image(pixels: Pixels, side: int | None) -> Pixels:
    height, width = _reduced((pixels.shape[0], pixels.shape[1]), side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    # Pillow's resize averages over all source pixels (antialiased).
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))
