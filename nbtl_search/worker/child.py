"""The trainer as its supervisor sees it: a process to talk to, that may die at any moment.

What a worker is given besides its study: folders, limits, and the program that trains.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, final

from nbtl_search.files.rotation import rotate
from nbtl_search.spec import Value
from nbtl_search.worker import protocol

TRAINER: Final = (sys.executable, "-m", "nbtl_search.worker.trainer")


class ChildDiedError(Exception):
    """The trainer is gone; the message says how."""


@final
class Child:
    """One trainer process."""

    def __init__(
        self, *, log: Path, n_threads: int | None, command: Sequence[str] = TRAINER
    ) -> None:
        """Start the process; its output goes to `log`.

        `command` gets the number of its connection's file as last argument.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate(log)
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)  # noqa: TID251  (passed on, not read)
        if n_threads is not None:
            environment["OMP_NUM_THREADS"] = str(n_threads)
        with log.open("ab") as output, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self._connection: Connection[bytes, bytes] = Connection(ours.detach())
        self._log = log

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: Value) -> None:
        """Send a message.

        Raises:
            ChildDiedError: the process is gone.
        """
        try:
            protocol.send(self._connection, message)
        except OSError as error:
            raise ChildDiedError(self._epitaph()) from error

    def poll(self, timeout_s: float) -> protocol.Report | None:
        """Return the next message, or None if none comes in time.

        Raises:
            ChildDiedError: the process is gone.
        """
        try:
            if not self._connection.poll(timeout_s):
                return None
            return protocol.receive_report(self._connection)
        except (EOFError, OSError) as error:
            raise ChildDiedError(self._epitaph()) from error

    def kill(self) -> None:
        """End the process now; it has nothing to lose but the time since its checkpoint."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _epitaph(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL: the kernel's out-of-memory killer, or an operator)"
        elif code < 0:
            how = f"died of {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        return f"the trainer process {how}; its log is {self._log}"


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
