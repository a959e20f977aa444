"""Caltech-256-30: files 1-30 of each class train, 31-50 validate, the rest test.

Griffin, Holub and Perona, Caltech-256 Object Category Dataset, 2007; split as in Plested, Shen and
Gedeon (2021), section 3.1.
"""

import re
from pathlib import Path

from nbtl_search.data.splits import Item, Manifest, Sizes, in_order, require_sizes

OFFICIAL = Sizes(
    n_classes=256, train=7680, val=5120, test=16980, per_class={"train": 30, "val": 20}
)
LAST_TRAIN, LAST_VAL = 30, 50
CLASS_FOLDER = re.compile(r"\d{3}\.(?P<name>.+)")
IMAGE_FILE = re.compile(r"\d{3}_(?P<number>\d{4})\.jpg")


def read_caltech256(root: Path, *, expected: Sizes = OFFICIAL) -> Manifest:
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
