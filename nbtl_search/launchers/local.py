"""Local launch: a worker process per slot of this machine, restarted when it dies."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import psutil

from nbtl_search import restart_policy
from nbtl_search.errors import EXIT_CODE, NbtlError
from nbtl_search.files.rotation import rotate
from nbtl_search.restart_policy import Restarts

logger = logging.getLogger(__name__)

_GB: Final = 2**30
_MEMORY_GB: Final = 3.0  # a CPU worker on Inception-v4 at 299 px, batch 32, takes about this
_LOOK_S: Final = 0.5
_GRACE_S: Final = 15.0  # a worker writes its checkpoint and releases its trial within ten


def gpus() -> list[str]:
    """Return the ids of the visible NVIDIA GPUs, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # noqa: TID251  (NVIDIA's, not ours)
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],  # noqa: S607
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def default_slots(*, n_gpus: int, per_gpu: int = 1, n_threads: int | None) -> int:
    """Return how many workers run here when no number is given: by GPUs, else by cores and memory.

    Args:
        n_gpus: that are to be used.
        per_gpu: workers that share one.
        n_threads: of a worker on a CPU.
    """
    if n_gpus:
        return n_gpus * per_gpu
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    cores = cores or psutil.cpu_count() or 1
    memory_gb = psutil.virtual_memory().total / _GB
    return max(1, min(cores // (n_threads or 1), int(memory_gb // _MEMORY_GB)))


@dataclass(kw_only=True)
class _Slot:
    """One worker's place: its environment, its process, and its deaths."""

    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    is_done: bool = False

    def __post_init__(self) -> None:
        self.restarts = Restarts(restart_policy.WORKER)


@final
class LocalLaunch:
    """The workers of one study on this machine."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environments: Sequence[Mapping[str, str]],
        logs: Path,
    ) -> None:
        """Prepare one slot for each environment; `command` runs one worker."""
        self._command = [sys.executable, "-P", "-m", "nbtl_search.cli", *command]
        logs.mkdir(parents=True, exist_ok=True)
        self._slots = [
            _Slot(environment=environment, log=logs / f"slot-{index}.log")
            for index, environment in enumerate(environments)
        ]

    def run(self, *, stopping: Callable[[], bool], tick: Callable[[], None]) -> None:
        """Keep the workers going until all have ended, or `stopping()`; `tick` runs each second.

        Raises:
            NbtlError: a worker refused to start, or kept dying; the others are stopped first.
        """
        try:
            while not stopping() and not all(slot.is_done for slot in self._slots):
                for slot in self._slots:
                    self._step(slot, time.monotonic())
                tick()
                time.sleep(_LOOK_S)
        finally:
            # Also after an error: nobody would restart or end a worker that is left behind.
            self._stop()

    def _step(self, slot: _Slot, now: float) -> None:
        """Start the slot's worker if it is time, or look how it ended."""
        if slot.is_done:
            return
        if slot.process is None:
            # Not slept for: the other slots' workers may die meanwhile, and Ctrl-C must be heard.
            if now >= slot.start_at:
                self._start(slot, now)
            return
        code = slot.process.poll()
        if code is None:
            return
        slot.process = None
        if code == 0:
            slot.is_done = True
        elif code == EXIT_CODE:
            # The others have the same study and the same machine: they would be refused as well.
            raise NbtlError(_last_line(slot.log))
        else:
            self._restart_later(slot, code, now)

    def _start(self, slot: _Slot, now: float) -> None:
        slot.started_at = now
        rotate(slot.log)
        with slot.log.open("ab") as log:
            slot.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **slot.environment},  # noqa: TID251  (passed on, not read)
                # Ctrl-C reaches the terminal's whole group; a worker is to get one SIGTERM from
                # `_stop` instead, which waits for its checkpoint.
                start_new_session=True,
            )

    def _restart_later(self, slot: _Slot, code: int, now: float) -> None:
        logger.warning("a worker ended with %d; restarting", code, extra={"action": "restart"})
        pause_s = slot.restarts.after_death(lived_s=now - slot.started_at)
        if pause_s is None:
            message = f"a worker keeps ending with code {code}; its log is {slot.log}"
            raise NbtlError(message)
        slot.start_at = now + pause_s

    def _stop(self) -> None:
        """Ask every worker to checkpoint and go; end those that do not in time."""
        running = [slot.process for slot in self._slots if slot.process is not None]
        # All of them before any is waited for: they share one grace period.
        for process in running:
            process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() or ["no output"]
    return lines[-1].removeprefix("Error: ")
