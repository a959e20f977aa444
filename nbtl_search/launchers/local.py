"""One worker process per slot of this machine, restarted when it dies, until the study is over."""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import psutil

from nbtl_search.errors import NbtlError
from nbtl_search.files.rotation import rotate

logger = logging.getLogger(__name__)

USER_ERROR: Final = 2
_GB: Final = 2**30
_MEMORY_GB: Final = 3.0  # a CPU worker on Inception-v4 at 299 px, batch 32, takes about this
_MAX_RESTARTS: Final = 5
_CALM_S: Final = 60.0


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


def default_slots(*, n_threads: int) -> int:
    """Return how many CPU workers fit this machine, by cores and by memory."""
    cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    cores = cores or psutil.cpu_count() or 1
    memory_gb = psutil.virtual_memory().total / _GB
    return max(1, min(cores // n_threads, int(memory_gb // _MEMORY_GB)))


@dataclass(kw_only=True)
class _Slot:
    """One worker's place: its environment, its process, and how often it had to be restarted."""

    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    n_restarts: int = 0
    started: float = 0.0
    start_at: float = 0.0
    done: bool = field(default=False)


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
        self._command = [sys.executable, "-m", "nbtl_search.cli", *command]
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
            while not stopping() and not all(slot.done for slot in self._slots):
                for slot in self._slots:
                    self._look_after(slot)
                tick()
                time.sleep(0.5)
        finally:
            self._stop()

    def _look_after(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.done:
            return
        if slot.process is None:
            if now >= slot.start_at:
                self._start(slot)
            return
        code = slot.process.poll()
        if code is None:
            return
        slot.process = None
        if code == 0:
            slot.done = True
        elif code == USER_ERROR:
            raise NbtlError(_last_line(slot.log))
        else:
            self._restart_later(slot, code, now)

    def _start(self, slot: _Slot) -> None:
        slot.started = time.monotonic()
        rotate(slot.log)
        with slot.log.open("ab") as log:
            slot.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **slot.environment},  # noqa: TID251  (passed on, not read)
                start_new_session=True,
            )

    def _restart_later(self, slot: _Slot, code: int, now: float) -> None:
        """Restart a dead worker, after a pause that doubles while it keeps dying at once."""
        slot.n_restarts = 0 if now - slot.started > _CALM_S else slot.n_restarts + 1
        logger.warning("a worker ended with %d; restarting", code, extra={"action": "restart"})
        if slot.n_restarts > _MAX_RESTARTS:
            message = f"a worker keeps ending with code {code}; its log is {slot.log}"
            raise NbtlError(message)
        slot.start_at = now + 0.5 * 2**slot.n_restarts

    def _stop(self) -> None:
        """Ask every worker to checkpoint and go; end those that do not within 15 seconds."""
        running = [slot.process for slot in self._slots if slot.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + 15
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").strip().splitlines() or ["no output"]
    return lines[-1].removeprefix("Error: ")
