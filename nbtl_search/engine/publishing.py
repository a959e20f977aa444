"""An exported folder appears whole or not at all, and replaces nothing that we did not make."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbtl_search.errors import WeightsError

DAY_S = 86_400


@contextmanager
def published(target: Path, *, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `target` to fill; it takes the place of `target` at the end.

    After any error the temporary folder is gone and `target` is as before.

    Args:
        target: absolute; it must not exist, or be empty, unless `force`.
        force: replace it.

    Raises:
        WeightsError: the folder cannot be written.
    """
    unique = uuid.uuid4().hex
    temporary = target.with_name(f".{target.name}.{unique}.tmp")
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target)
        temporary.mkdir()
        yield temporary
        _flush(temporary)
        _swap(temporary, target, old=target.with_name(f".{target.name}.{unique}.old"), force=force)
    except OSError as error:
        message = (
            f"{str(target)!r} must be a place that can be written, with room, got "
            f"{error.strerror or error}; choose another folder, or make room"
        )
        raise WeightsError(message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.exists():
            _remove_empty(made)


def _swap(temporary: Path, target: Path, *, old: Path, force: bool) -> None:
    if not force or not target.exists():
        temporary.rename(target)  # fails where the target has content by now
    else:
        target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _flush_one(target.parent)


def _clear(target: Path) -> None:
    """Remove what exports that were killed left here, a day later."""
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        if left.is_dir() and time.time() - left.stat().st_mtime > DAY_S:
            shutil.rmtree(left, ignore_errors=True)


def _remove_empty(made: list[Path]) -> None:
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
