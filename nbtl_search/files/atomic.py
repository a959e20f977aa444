"""Files that are there whole or not at all, also after a kill or a power cut.

Folders that are there with all their files or not at all, also after a kill or a power cut.

Arrays on disk in parts: each is whole and checked, so that what was killed goes on behind it.

A part is `np.save`'s bytes followed by their sha256.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# A writer that is still at work touches its file all the time; this one is long dead.
ABANDONED_S = 600


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write the parts one behind the other: unique temporary file, flush, rename, flush.

    Raises:
        OSError: the disk is full or not writable. What was at `path` is untouched then, and the
            temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: the disk is full or not writable.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_abandoned(directory: Path) -> None:
    """Remove what writers that were killed left behind."""
    for temporary in directory.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > ABANDONED_S:
                temporary.unlink()


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


_FOOTER_BYTES = hashlib.sha256().digest_size


def write(path: Path, array: NDArray[Any]) -> None:
    """Write an array whole or not at all.

    Raises:
        OSError: the disk is full or not writable.
    """
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    payload = content.getbuffer()
    write_durably(path, payload, hashlib.sha256(payload).digest())


def read(path: Path, *, n: int) -> NDArray[np.float32] | None:
    """Return a part of n finite or infinite float32 rows; None where it is missing or damaged.

    Raises:
        OSError: the file is there and cannot be read.
    """
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    payload, footer = content[:-_FOOTER_BYTES], bytes(content[-_FOOTER_BYTES:])
    if footer != hashlib.sha256(payload).digest():
        return None
    array: NDArray[Any] | None = None
    with contextlib.suppress(ValueError, EOFError):
        array = np.load(io.BytesIO(payload), allow_pickle=False)
    if array is None or array.ndim != 2 or len(array) != n or array.dtype != np.float32:
        return None
    return array
