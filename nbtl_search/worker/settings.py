"""Settings of one worker: its folders and limits, its heartbeats and other intervals."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TRAINER: Final = (sys.executable, "-P", "-m", "nbtl_search.worker.trainer")


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker is given besides its study."""

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


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Every interval of a worker, in seconds."""

    heartbeat_s: float = 10.0
    """Between two renewals of the lease."""
    lease_s: float = 60.0
    """How long a lease lasts: six heartbeats, so that a few may be lost."""
    poll_s: float = 2.0
    """Between two looks for work, where there is none."""
    halt_s: float = 7.0
    """What a trainer gets to write its checkpoint after SIGTERM: `docker stop` kills after 10
    seconds, and releasing the trial needs a moment as well."""
    open_s: float = 1800.0
    """What a trainer gets to open data and weights, which the first worker of a node decodes."""
    hang_s: float = 1800.0
    """After so long without a message a trainer is killed. Long, since a validation on a CPU sends
    none for minutes."""
    retry_s: float = 2.0
    """Between two tries of a database that is lost."""
