"""Official datasets: fetched by checksum, and read in the splits that their authors published.

One reader for each, with the sizes beside it that its images must have.
"""

import http.client
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import scipy.io
from scipy.io.matlab import MatReadError
from torchvision.datasets.utils import download_url

from nbtl_search.data.splits import Item, Manifest, Sizes, in_order, require_sizes
from nbtl_search.errors import DataError
from nbtl_search.files.shared_folder import publish


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A tar archive on the network."""

    url: str
    md5: str
    n_bytes: int
    """Space for the archive and what is in it, both at once."""


def fetch(archive: Archive, target: Path) -> Path:
    """Make `target` hold the content of the archive; a broken download leaves nothing.

    Raises:
        DataError: it cannot be had; the message says what to fetch and where to put it.
    """

    def fill(temporary: Path) -> None:
        name = archive.url.rpartition("/")[2]
        try:
            download_url(archive.url, str(temporary), filename=name, md5=archive.md5)
            # filter="data" refuses paths that leave the folder, links out of it, and devices.
            shutil.unpack_archive(temporary / name, temporary, filter="data")
        except (
            OSError,
            RuntimeError,
            http.client.HTTPException,
            tarfile.TarError,
            shutil.ReadError,
        ) as error:
            message = (
                f"{archive.url} must be reachable and whole (md5 {archive.md5}), got {error}; "
                f"fetch it elsewhere, extract it into {target}, and try again"
            )
            raise DataError(message) from error
        (temporary / name).unlink()

    return publish(target, fill, n_bytes=archive.n_bytes)


# FGVC-Aircraft: Maji et al. 2013, arXiv 1306.5151. Official train, val and test lists.
AIRCRAFT_SIZES = Sizes(n_classes=100, train=3334, val=3333, test=3333, per_class={})


def read_aircraft(root: Path, *, expected: Sizes = AIRCRAFT_SIZES) -> Manifest:
    """Read the split from `root`, which holds variants.txt, images_variant_*.txt and images/.

    The class numbers are the lines of variants.txt. The authors' code of the paper numbers by first
    appearance, so that its numbers and ours must not be mixed.

    Raises:
        DataError: a list is missing or names an unknown variant, or the sizes are wrong.
    """
    classes = tuple(_lines(root / "variants.txt"))
    items = {
        split: read_list(root / f"images_variant_{split}.txt", classes=classes)
        for split in ("train", "val", "test")
    }
    manifest = Manifest(
        name="aircraft", classes=classes, train=items["train"], val=items["val"], test=items["test"]
    )
    return require_sizes(manifest, expected, root=root)


def read_list(path: Path, *, classes: tuple[str, ...]) -> tuple[Item, ...]:
    """Return the images of one list. Names hold spaces: only the first one of a line separates.

    Raises:
        DataError: the list is missing, or names a variant that is not among the classes.
    """
    labels = {name: label for label, name in enumerate(classes)}
    items = []
    for line in _lines(path):
        number, _, name = line.partition(" ")
        if name not in labels:
            message = (
                f"{path} names variants of variants.txt only, got {name!r}; fetch aircraft again"
            )
            raise DataError(message)
        image = path.parent / "images" / f"{number}.jpg"
        items.append(Item(path=image, label=labels[name], key=f"{number}.jpg"))
    return in_order(items)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} must be a readable list, got {error}; fetch aircraft again"
        raise DataError(message) from error
    return [line.strip() for line in lines if line.strip()]


# Caltech-256-30: Griffin, Holub and Perona, Caltech-256 Object Category Dataset, 2007; split as in
# Plested, Shen and Gedeon (2021), section 3.1: files 1-30 of each class train, 31-50 validate.
CALTECH256_SIZES = Sizes(
    n_classes=256, train=7680, val=5120, test=16980, per_class={"train": 30, "val": 20}
)
LAST_TRAIN, LAST_VAL = 30, 50
CLASS_FOLDER = re.compile(r"\d{3}\.(?P<name>.+)")
IMAGE_FILE = re.compile(r"\d{3}_(?P<number>\d{4})\.jpg")


def read_caltech256(root: Path, *, expected: Sizes = CALTECH256_SIZES) -> Manifest:
    """Read the split from `root`, which holds 001.ak47/ … 256.toad/.

    The clutter folder is no class. What the archive has besides `NNN_NNNN.jpg` (a folder `greg`
    in 056.dog, a file in 198.spider) is ignored.

    Raises:
        DataError: the sizes are not the expected ones.
    """
    folders = [folder for folder in sorted(root.iterdir()) if _is_class(folder)]
    split: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for label, folder in enumerate(folders):
        for path in folder.iterdir():
            match = IMAGE_FILE.fullmatch(path.name)
            if match:
                item = Item(path=path, label=label, key=f"{folder.name}/{path.name}")
                split[_split_of(int(match["number"]))].append(item)
    manifest = Manifest(
        name="caltech256",
        classes=tuple(folder.name for folder in folders),
        train=in_order(split["train"]),
        val=in_order(split["val"]),
        test=in_order(split["test"]),
    )
    return require_sizes(manifest, expected, root=root)


def _is_class(folder: Path) -> bool:
    match = CLASS_FOLDER.fullmatch(folder.name)
    return match is not None and match["name"] != "clutter" and folder.is_dir()


def _split_of(number: int) -> str:
    if number <= LAST_TRAIN:
        return "train"
    return "val" if number <= LAST_VAL else "test"


# Stanford Cars: Krause et al., 3D Object Representations for Fine-Grained Categorization, 2013.
# Official train and test; validation is the first 11 of each class of train. Never take it from the
# official test list: the released code of the paper does, and its chosen settings have seen 27 % of
# the test set.
CARS_SIZES = Sizes(n_classes=196, train=5988, val=2156, test=8041, per_class={"val": 11})
N_VAL_PER_CLASS = 11
TEST_LABELS = "cars_test_annos_withlabels.mat"


def read_cars(
    root: Path, *, expected: Sizes = CARS_SIZES, n_val_per_class: int = N_VAL_PER_CLASS
) -> Manifest:
    """Read the split from `root`, which holds devkit/, cars_train/ and cars_test/.

    Raises:
        DataError: an annotation file is missing or damaged, or the sizes are not the expected ones.
    """
    test_labels = root / TEST_LABELS
    if not test_labels.exists():
        test_labels = root / "devkit" / TEST_LABELS
    train, val = split_train(
        read_annotations(root / "devkit" / "cars_train_annos.mat", images=root / "cars_train"),
        n_val_per_class=n_val_per_class,
    )
    manifest = Manifest(
        name="cars",
        classes=read_classes(root / "devkit" / "cars_meta.mat"),
        train=train,
        val=val,
        test=tuple(read_annotations(test_labels, images=root / "cars_test")),
    )
    return require_sizes(manifest, expected, root=root)


def read_classes(path: Path) -> tuple[str, ...]:
    """Return the class names in the order of their numbers.

    Raises:
        DataError: the file is missing or holds no class names.
    """
    return tuple(str(name) for name in _load(path, "class_names"))


def read_annotations(path: Path, *, images: Path) -> list[Item]:
    """Return the images of an annotation file, in its order; labels count from 0.

    Raises:
        DataError: the file is missing or has no labels.
    """
    annotations = _load(path, "annotations")
    if "class" not in annotations.dtype.names:
        message = (
            f"{path} must hold a class for every image, got {annotations.dtype.names}; "
            f"put {TEST_LABELS} there"
        )
        raise DataError(message)
    return [
        Item(
            path=images / str(row["fname"]),
            label=int(row["class"]) - 1,
            key=f"{images.name}/{row['fname']}",
        )
        for row in annotations
    ]


def split_train(
    items: Sequence[Item], *, n_val_per_class: int = N_VAL_PER_CLASS
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Return (train, validation): the first few of each class, in the given order, validate."""
    seen: Counter[int] = Counter()
    train: list[Item] = []
    val: list[Item] = []
    for item in items:
        seen[item.label] += 1
        (val if seen[item.label] <= n_val_per_class else train).append(item)
    return tuple(train), tuple(val)


def _load(path: Path, name: str) -> Any:
    try:
        return scipy.io.loadmat(path, squeeze_me=True)[name]
    # scipy's reader raises any of these on a file that is damaged or none of MATLAB's.
    except (OSError, KeyError, ValueError, TypeError, MatReadError, NotImplementedError) as error:
        message = (
            f"{path} must be the {name} of the Stanford Cars devkit, got {error}; "
            "put the file of the original dataset there"
        )
        raise DataError(message) from error


# Describable Textures: Cimpoi et al., Describing Textures in the Wild, CVPR 2014. Ten official
# partitions into three equal splits.
DTD_SIZES = Sizes(
    n_classes=47,
    train=1880,
    val=1880,
    test=1880,
    per_class={"train": 40, "val": 40, "test": 40},
)


def read_dtd(root: Path, *, partition: int, expected: Sizes = DTD_SIZES) -> Manifest:
    """Read one official partition from `root`, which holds images/ and labels/.

    Raises:
        DataError: a list is missing or unreadable, or the sizes are not the expected ones.
    """
    lists = {s: _names(root / "labels" / f"{s}{partition}.txt") for s in ("train", "val", "test")}
    classes = tuple(sorted({name.partition("/")[0] for names in lists.values() for name in names}))
    items = {split: _items(root, names, classes) for split, names in lists.items()}
    manifest = Manifest(
        name="dtd", classes=classes, train=items["train"], val=items["val"], test=items["test"]
    )
    return require_sizes(manifest, expected, root=root)


def _names(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} must be a readable list of images, got {error}; fetch dtd again"
        raise DataError(message) from error


def _items(root: Path, names: list[str], classes: tuple[str, ...]) -> tuple[Item, ...]:
    return in_order(
        [
            Item(path=root / "images" / name, label=classes.index(name.partition("/")[0]), key=name)
            for name in names
        ]
    )
