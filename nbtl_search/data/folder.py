"""Folders of image files as a dataset: which extensions count, and how they are split."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from nbtl_search.data.splits import Item, Manifest, stratified_split
from nbtl_search.errors import DataError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
    | {".webp", ".avif", ".jp2"}
)

Files = dict[str, tuple[str, ...]]


def read_folder(
    root: Path, *, val_fraction: float, test_fraction: float, split_seed: int
) -> Manifest:
    """List the images of a folder and split them.

    With a `train` folder that holds class folders, `val` and `test` are read where they exist; a
    missing `val` is split off train, a missing `test` beside a `val` stays empty. Otherwise every
    folder in `root` is a class and each class is split alike. Hidden files, files that are no
    images and files beside the folders are ignored.

    Raises:
        DataError: too few classes or images, or splits that do not know the same classes.
    """
    fractions = {"val": val_fraction, "test": test_fraction}
    given = _given_splits(root)
    if "train" not in given:
        split = _split(_files(root), fractions, split_seed)
    elif "val" in given:
        split = given
    else:
        fractions["test"] = 0.0 if "test" in given else test_fraction
        split = given | _split(given["train"], fractions, split_seed)
    return _manifest(root, split)


def class_files(root: Path) -> Files:
    """Return the images of every class of a folder, of its `train` where it has one."""
    return _given_splits(root).get("train") or _files(root)


def _given_splits(root: Path) -> dict[str, Files]:
    """Return the files of the splits that have a folder; none if `train` is a class itself."""
    folders = {name: root / name for name in ("train", "val", "test")}
    if not any(child.is_dir() for child in _visible(folders["train"])):
        return {}
    return {
        name: {c: tuple(f"{name}/{key}" for key in keys) for c, keys in _files(folder).items()}
        for name, folder in folders.items()
        if folder.is_dir()
    }


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    children = [c for c in folder.iterdir() if not c.name.startswith((".", "__MACOSX"))]
    return sorted(children, key=lambda child: child.name)


def _files(folder: Path) -> Files:
    """Return the images of every class folder, as paths relative to `folder`."""
    return {
        child.name: tuple(sorted(path.relative_to(folder).as_posix() for path in _images(child)))
        for child in _visible(folder)
        if child.is_dir()
    }


def _images(folder: Path) -> list[Path]:
    found = []
    for directory, names, files in os.walk(folder):
        names[:] = [name for name in names if not name.startswith(".")]
        found += [
            Path(directory, name)
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS
        ]
    return found


def _split(files: Files, fractions: Mapping[str, float], seed: int) -> dict[str, Files]:
    wanted = {name: fraction for name, fraction in fractions.items() if fraction > 0}
    return stratified_split(files, seed=seed, fractions=wanted, rest="train")


def _manifest(root: Path, split: Mapping[str, Files]) -> Manifest:
    classes = tuple(split["train"])
    for name, files in split.items():
        unknown = sorted(files.keys() - set(classes))
        if unknown:
            message = (
                f"the classes of {name}/ are those of train/, got {unknown[0]!r} only in {name}/ "
                f"of {root}; give both splits the same class folders"
            )
            raise DataError(message)
    items = {
        name: tuple(_items(root, [files.get(c, ()) for c in classes]))
        for name, files in split.items()
    }
    return Manifest(
        name=root.resolve().name,
        classes=classes,
        train=items["train"],
        val=items["val"],
        test=items.get("test", ()),
    )


def _items(root: Path, keys: Sequence[Sequence[str]]) -> list[Item]:
    return [
        Item(path=root / key, label=label, key=key)
        for label, members in enumerate(keys)
        for key in sorted(members)
    ]
