"""Manifests: which image is in which split, their invariants, and our own stratified split."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nbtl_search.errors import DataError
from nbtl_search.textures.images import Textures

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image."""

    path: Path | None
    """Where it lies; None for an image that is rendered."""
    label: int
    key: str
    """Its name inside the dataset: the same on every machine."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The images of a dataset, split; every class is in train and val, no image is in two."""

    name: str
    classes: tuple[str, ...]
    """Names of the classes; the index is the label."""
    train: tuple[Item, ...]
    val: tuple[Item, ...]
    test: tuple[Item, ...] = ()
    """May be empty: not every folder has one."""
    digest: str = ""
    """sha256 over names, labels, splits and contents; known once the dataset is prepared."""
    textures: Textures | None = None
    """What renders the images that have no path."""

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            message = (
                f"a dataset needs n_classes >= 2, got {len(self.classes)} {list(self.classes)} in "
                f"{self.name!r}; name the folder that holds one folder per class"
            )
            raise DataError(message)
        keys = [item.key for split in SPLITS for item in self.items(split)]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            message = (
                f"no image is listed twice, got {twice!r} twice in {self.name!r}; mend its lists"
            )
            raise DataError(message)
        for split in SPLITS:
            _require_classes(self, split)

    def items(self, split: str) -> tuple[Item, ...]:
        """Return the images of a split.

        Raises:
            DataError: no split has this name.
        """
        if split not in SPLITS:
            message = f"split in {SPLITS}, got {split!r}; use one of these"
            raise DataError(message)
        items: tuple[Item, ...] = getattr(self, split)
        return items

    def without(self, keys: Mapping[str, str]) -> "Manifest":
        """Return the manifest without these images.

        Raises:
            DataError: a class would be left without images in train or val.
        """
        kept = {s: tuple(i for i in self.items(s) if i.key not in keys) for s in SPLITS}
        return replace(self, train=kept["train"], val=kept["val"], test=kept["test"])


def _require_classes(manifest: Manifest, split: str) -> None:
    items = manifest.items(split)
    if split == "test" and not items:
        return
    missing = set(range(len(manifest.classes))) - {item.label for item in items}
    if missing:
        names = [manifest.classes[label] for label in sorted(missing)]
        message = (
            f"every class has at least one image in {split}, got none of {_few(names)} in "
            f"{manifest.name!r}; add images, or take these classes out"
        )
        raise DataError(message)


def _few(names: Sequence[str], n: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:n])
    return shown if len(names) <= n else f"{shown} and {len(names) - n} more"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many images a dataset must have, as published."""

    n_classes: int
    train: int
    val: int
    test: int
    per_class: Mapping[str, int]
    """Images per class, of the splits that have the same number of each."""


def require_sizes(manifest: Manifest, expected: Sizes, *, root: Path) -> Manifest:
    """Return the manifest if its sizes are the expected ones.

    Raises:
        DataError: a size differs; the message names every difference.
    """
    wrong = _differences(manifest, expected)
    if wrong:
        message = (
            f"{manifest.name} in {root} must have the published sizes, got {'; '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}; "
            "delete it and fetch it again, or pass it as a folder of your own"
        )
        raise DataError(message)
    return manifest


def _differences(manifest: Manifest, expected: Sizes) -> list[str]:
    wrong = []
    if len(manifest.classes) != expected.n_classes:
        wrong.append(f"{len(manifest.classes)} classes instead of {expected.n_classes}")
    for split in SPLITS:
        n, n_expected = len(manifest.items(split)), getattr(expected, split)
        if n != n_expected:
            wrong.append(f"{n} images in {split} instead of {n_expected}")
    for split, n_expected in expected.per_class.items():
        labels = [item.label for item in manifest.items(split)]
        for label, name in enumerate(manifest.classes):
            n = labels.count(label)
            if n != n_expected:
                wrong.append(f"{n} images of {name!r} in {split} instead of {n_expected}")
    return wrong


def in_order(items: Sequence[Item]) -> tuple[Item, ...]:
    """Return the images by label, then key: an order that no file system decides."""
    return tuple(sorted(items, key=lambda item: (item.label, item.key)))


def stratified_split(
    keys: Mapping[str, Sequence[str]], *, seed: int, fractions: Mapping[str, float], rest: str
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Split the keys of each class alike: each fraction rounded, at least one in every split.

    A key's place comes from its own hash, so adding an image leaves the order of the others.

    Args:
        keys: the images of each class.
        seed: another seed gives another split.
        fractions: of each split to take out, such as {"val": 0.2, "test": 0.2}.
        rest: the split that gets what remains.

    Returns:
        For each split, the keys of each class.

    Raises:
        DataError: a class has fewer images than there are splits, or nothing would remain.
    """
    if sum(fractions.values()) >= 1:
        message = (
            f"{' + '.join(f'{name}_fraction' for name in fractions)} < 1, got "
            f"{' + '.join(str(value) for value in fractions.values())}; lower one of them"
        )
        raise DataError(message)
    _require_enough(keys, n_splits=len(fractions) + 1)
    split: dict[str, dict[str, tuple[str, ...]]] = {name: {} for name in (*fractions, rest)}
    for name, members in keys.items():
        shuffled = sorted(members, key=lambda key: _hashed(seed, key))
        start = 0
        for part, n in _counts(len(shuffled), fractions).items():
            split[part][name] = tuple(shuffled[start : start + n])
            start += n
        split[rest][name] = tuple(shuffled[start:])
    return split


def _require_enough(keys: Mapping[str, Sequence[str]], *, n_splits: int) -> None:
    small = {name: len(members) for name, members in keys.items() if len(members) < n_splits}
    if small:
        listed = [f"{name} ({n})" for name, n in small.items()]
        message = (
            f"a class needs at least {n_splits} images, one for every split, got {_few(listed)}; "
            "add images, or take the class out"
        )
        raise DataError(message)


def _counts(n: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Return the size of each part; the largest gives way until one image remains for the rest."""
    counts = {name: max(1, round(n * fraction)) for name, fraction in fractions.items()}
    while sum(counts.values()) >= n:
        largest = max(counts, key=lambda name: counts[name])
        counts[largest] -= 1
    return counts


def _hashed(seed: int, key: str) -> tuple[bytes, str]:
    return hashlib.sha256(f"{seed}/{key}".encode()).digest(), key
