"""Files that are there whole or not at all, also after a kill or a power cut."""

import contextlib
import os
import time
import uuid
from pathlib import Path

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
