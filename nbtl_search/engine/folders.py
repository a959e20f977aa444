"""Folders that are there with all their files or not at all, also after a kill or a power cut."""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nbtl_search.engine.durable import ABANDONED_S, write_durably

_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder of these files and no others: in a unique sibling, flushed, then renamed.

    What was at `folder` is taken away at the last moment. What killed writers left is removed.

    Raises:
        OSError: the disk is full or not writable. What was at `folder` is untouched then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = _sibling(folder)
    try:
        temporary.mkdir()
        for name, content in files.items():
            write_durably(temporary / name, content)
        _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _flush(folder.parent)


def _take_place(temporary: Path, folder: Path) -> None:
    """Rename over what is there; again if another attempt at the same run was quicker."""
    while True:
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
        else:
            return
        _take_away(folder)


def _take_away(folder: Path) -> None:
    """A rename first: a folder is never seen with a part of its files."""
    old = _sibling(folder)
    try:
        folder.rename(old)
    except FileNotFoundError:
        return
    shutil.rmtree(old, ignore_errors=True)


def _prefix(folder: Path) -> str:
    return f".{folder.name}-tmp-"


def _sibling(folder: Path) -> Path:
    return folder.with_name(f"{_prefix(folder)}{uuid.uuid4().hex}")


def _remove_abandoned(folder: Path) -> None:
    for left in folder.parent.glob(f"{_prefix(folder)}*"):
        try:
            is_old = time.time() - left.stat().st_mtime > ABANDONED_S
        except FileNotFoundError:
            continue
        if is_old:
            shutil.rmtree(left, ignore_errors=True)


def _flush(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
