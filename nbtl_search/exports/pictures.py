"""The image files that arguments name: files, folders, globs; and the class their folder says."""

import glob
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbtl_search.data.folder import EXTENSIONS
from nbtl_search.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image file."""

    file: Path
    folders: tuple[str, ...]
    """Where it lies in the folder named: subfolders from the top, then the folder itself."""


def find_pictures(arguments: Iterable[str | Path]) -> list[Picture]:
    """List the images of files, folders (recursively, hidden ones left out) and globs, once each.

    A file that is named itself is taken whatever its extension.

    Raises:
        DataError: an argument names nothing, or a folder without images.
    """
    found: dict[Path, Picture] = {}
    for argument in arguments:
        for picture in _of(str(argument)):
            found.setdefault(picture.file, picture)
    return list(found.values())


def true_labels(pictures: Sequence[Picture], labels: Sequence[str]) -> list[int | None]:
    """Return the class that a folder of each picture names; None where none does."""
    known = {_composed(name): index for index, name in enumerate(labels)}
    return [
        next((known[name] for name in map(_composed, picture.folders) if name in known), None)
        for picture in pictures
    ]


def _of(argument: str) -> list[Picture]:
    path = Path(argument).expanduser()
    if path.exists():
        pictures = _at(path)
    else:
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 it may be absolute
        pictures = [picture for match in matches for picture in _at(Path(match))]
        pictures = [picture for picture in pictures if _is_image(picture.file.name)]
    if not pictures:
        message = (
            "an image argument is a file, a folder with images or a glob that matches some, got "
            f"{argument!r}; check the spelling"
        )
        raise DataError(message)
    return pictures


def _at(path: Path) -> list[Picture]:
    return list(_inside(path)) if path.is_dir() else [Picture(file=path, folders=())]


def _inside(folder: Path) -> Iterator[Picture]:
    own = folder.resolve().name
    for directory, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith((".", "__MACOSX")))
        inside = Path(directory).relative_to(folder).parts
        for name in sorted(files):
            if _is_image(name):
                yield Picture(file=Path(directory, name), folders=(*inside, own))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _composed(name: str) -> str:
    """Return one spelling of names that file systems spell differently (macOS decomposes)."""
    return unicodedata.normalize("NFC", name)
