"""Checkpoints on disk: written whole or not at all, checked when they are read.

A file is `torch.save`'s bytes followed by a footer: eight marker bytes and the sha256 of what
stands before. It is written under a unique name, flushed, and renamed; a file that does not match
its footer is set aside and the one before it is used.
"""

import contextlib
import hashlib
import io
import logging
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from nbtl_search.engine.durable import remove_abandoned, write_durably
from nbtl_search.engine.state import RunState

logger = logging.getLogger(__name__)

MARKER = b"NBTLckp1"
FOOTER_BYTES = len(MARKER) + 32
SUFFIX = ".ckpt"


@runtime_checkable
class Resumable(Protocol):
    """What has a position and a state: a run."""

    @property
    def position(self) -> tuple[int, int]:
        """Return (epochs finished, updates done in the next one)."""

    def state_dict(self) -> RunState:
        """Return the state to save."""

    def load_state_dict(self, saved: RunState) -> None:
        """Take a saved state."""


def save(directory: Path, run: Resumable, *, keep: int = 2) -> Path:
    """Write a checkpoint, and remove all but the `keep` furthest ones.

    Only files that are less far than the kept ones are removed, so an attempt that was
    overtaken by another, and does not know it yet, cannot remove the other's newer files.

    Raises:
        OSError: the disk is full or not writable. Older checkpoints are untouched then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    epoch, update = run.position
    path = directory / f"{epoch:06d}-{update:08d}{SUFFIX}"
    content = io.BytesIO()
    torch.save(run.state_dict(), content)
    payload = content.getbuffer()
    write_durably(path, payload, MARKER + hashlib.sha256(payload).digest())
    for old in _furthest_first(directory)[keep:]:
        old.unlink(missing_ok=True)
    remove_abandoned(directory)
    return path


def load_latest(directory: Path, run: Resumable) -> bool:
    """Bring a run to its furthest sound checkpoint; return False where there is none.

    A damaged file is renamed to `*.damaged`, logged, and the one before it is used.

    Raises:
        SpecError: the checkpoint is of another recipe or version.
        WeightsError: the pre-trained weights are others now.
        DataError: the data are others now.
        OSError: a checkpoint cannot be read.
    """
    if not directory.is_dir():
        return False
    remove_abandoned(directory)
    for path in _furthest_first(directory):
        state = _read(path)
        if state is not None:
            run.load_state_dict(state)
            return True
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or None where the file is damaged or gone."""
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    payload, footer = content[:-FOOTER_BYTES], bytes(content[-FOOTER_BYTES:])
    if footer != MARKER + hashlib.sha256(payload).digest():
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".damaged"))
        logger.warning(
            "checkpoint %s is damaged; using the one before it",
            path,
            extra={"action": "load_checkpoint", "path": str(path)},
        )
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def _furthest_first(directory: Path) -> list[Path]:
    # The numbers in the names have leading zeros, so names sort as positions do.
    return sorted(directory.glob(f"[0-9]*{SUFFIX}"), reverse=True)
