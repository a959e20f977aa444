"""Task of a cluster's queue: a worker as a process of its own, and its signals.

The object travels to the node as a pickle: it holds paths and arguments, and no secret. The node
imports this module to read it, so that nothing here needs more than submitit.
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

from nbtl_search import restart_policy
from nbtl_search.errors import EXIT_CODE
from nbtl_search.restart_policy import Restarts

_POLL_S: Final = 0.5
# A worker writes its checkpoint and releases its trial within ten seconds; Slurm kills a task that
# was told to end after thirty (KillWait).
_GRACE_S: Final = 25.0


def _ignore_warnings() -> None:
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
        restarts, n_restarts = Restarts(restart_policy.WORKER), 0
        while not self._leaving:
            started_at = time.monotonic()
            code = self._run_once()
            if code == 0:
                break
            n_restarts += 1
            pause_s = restarts.after_death(lived_s=time.monotonic() - started_at)
            if code == EXIT_CODE or pause_s is None:
                message = f"the worker ended with code {code}; its reason stands above"
                raise RuntimeError(message)
            time.sleep(pause_s)  # a signal is handled in it, and ends the loop at its next turn
        return n_restarts

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """End the worker, which writes a checkpoint and releases its trial; be queued again.

        submitit calls this where the time limit is near or the job is preempted.
        """
        self._leave()
        return submitit.helpers.DelayedSubmission(self)

    def _run_once(self) -> int:
        command = [sys.executable, "-P", "-m", "nbtl_search.cli", *self.arguments]
        environment = {**os.environ, **self.environment}  # noqa: TID251  (passed on, not read)
        if self.cache is not None:
            command += ["--cache", os.path.expandvars(self.cache)]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            # Slurm warns all processes of a task at once; Python dies of these signals by default,
            # and a worker that is still importing has not yet taken them.
            preexec_fn=_ignore_warnings,  # noqa: PLW1509  (this process has one thread)
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
        # The flag before the process is looked at: a worker that is being started just now ends
        # in `_run_once`, one that runs ends here, and none is started after it.
        self._leaving = True
        process = self._process
        if process is None:
            return
        process.terminate()
        deadline = time.monotonic() + _GRACE_S
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if process.poll() is None:
            process.kill()
