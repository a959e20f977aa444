"""Shared folders: they appear whole or not at all, however many processes make them at once."""

import errno
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from nbtl_search.errors import DataError
from nbtl_search.files.atomic import flush, flush_folder

logger = logging.getLogger(__name__)

DAY_S = 86400
WAIT_S = 1.0


def publish(target: Path, fill: Callable[[Path], None], *, n_bytes: int) -> Path:
    """Make the directory `target` exist, filled by one call of `fill`.

    Processes that come second wait for the first. A killed one leaves a temporary directory,
    which the next one removes.

    Args:
        target: the directory to make; if it exists, nothing happens.
        fill: writes the content into the temporary directory it is given.
        n_bytes: the space it will need.

    Raises:
        DataError: the disk has not enough space for it, or cannot be written.
    """
    if target.exists():
        return target
    with writing_below(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with alone(target) as locked:
            _clear(target, alone=locked)
            # Again: whoever had the lock before us may have made it while we waited.
            if not target.exists():
                _require_space(target.parent, n_bytes)
                _fill(target, fill)
    return target


@contextmanager
def writing_below(folder: Path) -> Iterator[None]:
    """Name the folder, and what to do, where it cannot be written.

    Raises:
        DataError: the disk is full, or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> DataError:
    message = (
        f"{folder} must be a folder with room that can be written, got "
        f"{error.strerror or error}; make room, or set NBTL_HOME to another disk"
    )
    return DataError(message)


def _prefix(target: Path) -> str:
    return f".{target.name}-tmp-"


def _fill(target: Path, fill: Callable[[Path], None]) -> None:
    temporary = target.with_name(f"{_prefix(target)}{socket.gethostname()}-{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        fill(temporary)
        # Before the rename: what is at `target` is taken for whole by everybody, for ever.
        flush_folder(temporary)
        temporary.rename(target)
    except OSError as error:
        # Without working locks another process may have been quicker: then its directory is ours.
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST} or not target.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush(target.parent)
    logger.info("published", extra={"action": "publish", "path": str(target)})


@contextmanager
def alone(target: Path, *, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold the lock of `target`; yield False where the file system has no locks.

    The kernel drops the lock of a process that dies. What is made is whole without it: the lock
    only spares work done twice.

    Args:
        target: what is made; the lock is a file beside it.
        waiting: called about once a second while another process has the lock; may raise.

    Raises:
        DataError: the lock's file cannot be written.
    """
    # No soft lock instead, which is a file: that of a killed process would stay for ever.
    lock = FileLock(target.with_name(f".{target.name}-lock"), fallback_to_soft=False)
    locked = _acquired(lock, target.parent, waiting)
    try:
        yield locked
    finally:
        if locked:
            with suppress(OSError):  # what was made is there; the kernel drops the lock with us
                lock.release()


def _acquired(lock: FileLock, folder: Path, waiting: Callable[[], None] | None) -> bool:
    while True:
        try:
            lock.acquire(blocking=waiting is None)
        except Timeout:
            pass  # waiting happens below, so that what it raises does not hang on this
        except OSError as error:
            # Opening the lock's file names the file in its error; locking it does not. Where
            # locking fails (mounts of NFS and FUSE have many reasons) the work goes on without.
            if error.filename is None:
                return False
            raise _not_writable(folder, error) from error
        else:
            return True
        assert waiting is not None, "without it the lock is waited for"  # noqa: S101
        waiting()
        time.sleep(WAIT_S)


def _clear(target: Path, *, alone: bool) -> None:
    """Remove what killed processes left: ours if nobody else is at work here, others' if old."""
    ours = _prefix(target) + socket.gethostname() + "-"
    for left in target.parent.glob(_prefix(target) + "*"):
        try:
            old = time.time() - left.stat().st_mtime > DAY_S
        except FileNotFoundError:
            continue
        if old or (alone and left.name.startswith(ours)):
            shutil.rmtree(left, ignore_errors=True)


def _require_space(directory: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(directory).free
    if free < n_bytes * 1.02:
        message = (
            f"free space in {directory} >= {n_bytes / 1e9:.2f} GB, got {free / 1e9:.2f} GB; "
            "make room, or put home (NBTL_HOME) or the cache (NBTL_CACHE) on another disk"
        )
        # Its cause says "disk" to a worker: no fault of the trial, which waits until there is room.
        raise DataError(message) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
