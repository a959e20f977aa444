"""Files and folders that are there whole or not at all, also after a kill or a power cut."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

# A writer that is still at work touches its file all the time; this one is long dead.
ABANDONED_S: Final = 600
# A folder is touched only when a file in it begins: an export may write one for an hour.
_ABANDONED_FOLDER_S: Final = 86_400
# What rename says where another writer was quicker and the name is taken.
_TAKEN: Final = frozenset({errno.ENOTEMPTY, errno.EEXIST})


def write_durably(
    path: Path, *parts: bytes | memoryview, mode: int | None = None, gid: int | None = None
) -> None:
    """Write the parts one behind the other: unique temporary file, flush, rename, flush.

    Args:
        path: the file, in a folder that exists.
        parts: its content.
        mode: who may read it; nobody else may at any moment. By default as the umask says.
        gid: its group; by default ours.

    Raises:
        OSError: the disk is full or not writable. What was at `path` is untouched then, and the
            temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb", opener=None if mode is None else _open_private) as file:
            file.writelines(parts)
            file.flush()
            if gid is not None and gid != os.getegid():
                os.fchown(file.fileno(), -1, gid)
            if mode is not None:
                # Last: a change of the group takes bits of the mode away.
                os.fchmod(file.fileno(), mode)
            # Before the rename: the name must not reach the disk ahead of the content, or a power
            # cut leaves an empty file where the old one was.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def _open_private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


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


def flush_folder(folder: Path) -> None:
    """Bring a folder with all that is in it to the disk.

    Raises:
        OSError: the disk is full or not writable.
    """
    for path in (*folder.rglob("*"), folder):
        flush(path)


def remove_abandoned(directory: Path) -> None:
    """Remove what writers that were killed left behind."""
    for temporary in directory.glob(".*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > ABANDONED_S:
                temporary.unlink()


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
        flush_folder(temporary)
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
                # The old folder goes back, if it was moved away and nothing took its place.
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
            if time.time() - left.stat().st_mtime > _ABANDONED_FOLDER_S:
                shutil.rmtree(left, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()
