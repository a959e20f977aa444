"""Describable Textures Dataset: 47 classes, ten official partitions into three equal splits.

Cimpoi et al., Describing Textures in the Wild, CVPR 2014.
"""

from pathlib import Path

from nbtl_search.data.splits import Item, Manifest, Sizes, in_order, require_sizes
from nbtl_search.errors import DataError

OFFICIAL = Sizes(
    n_classes=47,
    train=1880,
    val=1880,
    test=1880,
    per_class={"train": 40, "val": 40, "test": 40},
)


def read_dtd(root: Path, *, partition: int, expected: Sizes = OFFICIAL) -> Manifest:
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
