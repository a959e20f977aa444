"""Folders that are there with all their files or not at all, also after a kill or a power cut."""

import contextlib
import errno
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from nbtl_search.engine.durable import flush, write_durably

_ABANDONED_S: Final = 86_400
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of these files and no others; one of an earlier attempt is replaced.

    Raises:
        OSError: the disk is full or not writable. What was at `folder` is untouched then.
    """
    with whole_folder(folder, force=True) as temporary:
        for name, content in files.items():
            write_durably(temporary / name, content)


@contextmanager
def whole_folder(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `target` to fill; it takes the place of `target` at the end.

    After any error the temporary folder is gone and `target` is as before.

    Args:
        target: absolute; it must not exist, or be empty, unless `force`.
        force: replace it.

    Raises:
        OSError: the disk is full or not writable, or `target` has content and `force` is False.
    """
    temporary = _sibling(target)
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        temporary.mkdir()
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            flush(path)
        _take_place(temporary, target, force=force)
        flush(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


def _take_place(temporary: Path, target: Path, *, force: bool) -> None:
    """Rename over what is there; again if another writer was quicker."""
    old = _sibling(target)
    while True:
        try:
            temporary.rename(target)
        except OSError as error:
            if not force or error.errno not in _TAKEN:
                with contextlib.suppress(OSError):
                    old.rename(target)
                raise
        else:
            shutil.rmtree(old, ignore_errors=True)
            return
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            target.rename(old)  # whole, so that nobody ever sees it with a part of its files


def _prefix(target: Path) -> str:
    return f".{target.name}-tmp-"


def _sibling(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{uuid.uuid4().hex}")


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers left, a day later."""
    for left in target.parent.glob(f"{_prefix(target)}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
