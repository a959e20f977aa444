"""What a worker is given besides its study: folders, limits, and the program that trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nbtl_search.worker.child import TRAINER

PATIENCE_S: Final = 86_400  # a worker that starts while the database is away waits for it


@dataclass(frozen=True, kw_only=True)
class Slot:
    """The place of one worker."""

    home: Path
    """Checkpoints, logs, weights, and decoded images where there is no `cache`."""
    cache: Path | None = None
    """Where decoded images lie instead: a disk of this node."""
    free_gb: float = 0.0
    """No new trial is taken while the disk of `home` has less free space than this."""
    quota_gb: float | None = None
    """No new trial is taken while the study's checkpoints take more than this."""
    keep_best: int = 0
    """Of how many of the best trials that ended the last checkpoint is kept."""
    metrics_port: int | None = None
    """Where metrics are served on loopback."""
    trainer: Sequence[str] = TRAINER
    """The command of the trainer, which gets the number of its connection as last argument."""
