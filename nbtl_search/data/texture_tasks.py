"""The two tasks made of procedural textures: a small one to transfer to, a large one to learn."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from nbtl_search.data.splits import SPLITS, Item, Manifest
from nbtl_search.spec import DataSettings
from nbtl_search.textures.images import SOURCE_FAMILIES, TARGET_FAMILIES, Textures

# Images per class in train, val and test.
TARGET_SIZES = (24, 24, 24)
SOURCE_SIZES = (240, 20, 0)

# Rendered larger than the network's input, so that crops and resizes have something to cut.
MARGIN = 1.15


def target_task(data: DataSettings) -> Manifest:
    """Return the small task; `data.split_seed` is the seed of its images."""
    return _task("textures", TARGET_FAMILIES, TARGET_SIZES, data)


def source_task(data: DataSettings) -> Manifest:
    """Return the task to pre-train on; it shares no family with the small one."""
    return _task("textures-source", SOURCE_FAMILIES, SOURCE_SIZES, data)


def _task(name: str, families: Sequence[str], sizes: Sequence[int], data: DataSettings) -> Manifest:
    bounds = pairwise(accumulate(sizes, initial=0))
    items = {
        split: _items(families, range(*bound)) for split, bound in zip(SPLITS, bounds, strict=True)
    }
    return Manifest(
        name=name,
        classes=tuple(families),
        train=items["train"],
        val=items["val"],
        test=items["test"],
        textures=Textures(seed=data.split_seed, size_px=round(data.image_px * MARGIN)),
    )


def _items(families: Sequence[str], indexes: range) -> tuple[Item, ...]:
    return tuple(
        Item(path=None, label=label, key=f"{family}/{index:05d}")
        for label, family in enumerate(families)
        for index in indexes
    )
