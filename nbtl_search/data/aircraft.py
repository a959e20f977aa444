"""FGVC-Aircraft, 100 variants: official train, val and test lists.

Maji et al., Fine-Grained Visual Classification of Aircraft, arXiv 1306.5151. The class numbers are
the lines of variants.txt; the authors' code numbers by first appearance, so maps must not be mixed.
"""

from pathlib import Path

from nbtl_search.data.splits import Item, Manifest, Sizes, in_order, require_sizes
from nbtl_search.errors import DataError

OFFICIAL = Sizes(n_classes=100, train=3334, val=3333, test=3333, per_class={})


def read_aircraft(root: Path, *, expected: Sizes = OFFICIAL) -> Manifest:
    """Read the split from `root`, which holds variants.txt, images_variant_*.txt and images/.

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
