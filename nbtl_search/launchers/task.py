"""What a task of a cluster's queue runs: a worker as a process of its own, and its signals.

The object travels to the node as a pickle: it holds paths and arguments, and no secret.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final, final

import submitit

_USER_ERROR: Final = 2
_POLL_S: Final = 0.5
_LEAVE_S: Final = 25.0  # a worker writes its checkpoint and gives its trial back within ten
_MAX_RESTARTS: Final = 5
_CALM_S: Final = 60.0


def _deaf_to_warnings() -> None:
    """Ignore the warning that Slurm sends to all processes of a task, until the worker listens."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


@final
@dataclass
class WorkerTask:
    """Run a worker until its study is over; restart it if it dies; end it if the node must go."""

    arguments: Sequence[str]
    """Of `nbtl-search`."""
    environment: Mapping[str, str]
    cache: str | None = None
    """A folder of the node's own disk, with the node's $VARIABLES."""

    def __post_init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving = False

    def __getstate__(self) -> dict[str, object]:
        """Leave the process behind: what is queued again starts anew."""
        return {**self.__dict__, "_process": None, "_leaving": False}

    def __call__(self) -> int:
        """Return how often the worker had to be restarted.

        Raises:
            RuntimeError: it refused to start, or kept dying; its last words stand in the log.
        """
        signal.signal(signal.SIGTERM, self._leave_on)  # submitit would only log it
        n_restarts = n_in_a_row = 0
        while not self._leaving:
            started = time.monotonic()
            code = self._run_once()
            if code == 0:
                break
            n_restarts += 1
            n_in_a_row = 1 if time.monotonic() - started > _CALM_S else n_in_a_row + 1
            if code == _USER_ERROR or n_in_a_row > _MAX_RESTARTS:
                message = f"the worker ended with code {code}; its reason stands above"
                raise RuntimeError(message)
            time.sleep(0.5 * 2**n_in_a_row)
        return n_restarts

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """End the worker, which writes a checkpoint and gives its trial back; be queued again.

        submitit calls this where the time limit is near or the job is preempted.
        """
        self._leave()
        return submitit.helpers.DelayedSubmission(self)

    def _run_once(self) -> int:
        command = [sys.executable, "-m", "nbtl_search.cli", *self.arguments]
        environment = {**os.environ, **self.environment}  # noqa: TID251  (passed on, not read)
        if self.cache is not None:
            command += ["--cache", os.path.expandvars(self.cache)]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            preexec_fn=_deaf_to_warnings,  # noqa: PLW1509  (this process has one thread)
        )
        if self._leaving:  # the signal came while the worker was being started
            self._process.terminate()
        # No blocking wait: the signal handlers, which run in between, wait for it as well.
        while (code := self._process.poll()) is None:
            time.sleep(_POLL_S)
        return code

    def _leave_on(self, _number: int, _frame: FrameType | None) -> None:
        self._leave()

    def _leave(self) -> None:
        self._leaving = True
        process = self._process
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + _LEAVE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is None:
            process.kill()
