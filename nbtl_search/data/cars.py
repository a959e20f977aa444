"""Stanford Cars: official train and test; validation is the first 11 of each class of train.

Krause, Stark, Deng and Fei-Fei, 3D Object Representations for Fine-Grained Categorization, 2013.
Never take the validation images from the official test list: the released code of the paper does,
and its chosen settings have seen 27 % of the test set.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scipy.io
from scipy.io.matlab import MatReadError

from nbtl_search.data.splits import Item, Manifest, Sizes, require_sizes
from nbtl_search.errors import DataError

OFFICIAL = Sizes(n_classes=196, train=5988, val=2156, test=8041, per_class={"val": 11})
N_VAL_PER_CLASS = 11
TEST_LABELS = "cars_test_annos_withlabels.mat"


def read_cars(
    root: Path, *, expected: Sizes = OFFICIAL, n_val_per_class: int = N_VAL_PER_CLASS
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
    except (OSError, KeyError, ValueError, TypeError, MatReadError, NotImplementedError) as error:
        message = (
            f"{path} must be the {name} of the Stanford Cars devkit, got {error}; "
            "put the file of the original dataset there"
        )
        raise DataError(message) from error
