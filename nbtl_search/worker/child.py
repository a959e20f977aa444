"""Child: the trainer as its supervisor sees it, a process that may die at any moment."""

import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import final

from nbtl_search.files.rotation import rotate
from nbtl_search.spec import Value
from nbtl_search.worker import protocol


class ChildDiedError(Exception):
    """The trainer is gone; the message says how."""


@final
class Child:
    """One trainer process."""

    def __init__(self, command: Sequence[str], *, log: Path, n_threads: int | None) -> None:
        """Start the process; its output goes to `log`.

        `command` gets the number of its connection's file as last argument.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        rotate(log)
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)  # noqa: TID251  (passed on, not read)
        if n_threads is not None:
            # Read by torch when it is imported: later is too late. The number belongs to the
            # study, because another one gives other sums and so another curve.
            environment["OMP_NUM_THREADS"] = str(n_threads)
        with log.open("ab") as output, theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                # Ctrl-C reaches a terminal's whole group: it is for the supervisor to answer,
                # and the trainer still has a checkpoint to write.
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
            raise ChildDiedError(self._exit_message()) from error

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
            raise ChildDiedError(self._exit_message()) from error

    def kill(self) -> None:
        """End the process now; it has nothing to lose but the time since its checkpoint."""
        self._process.kill()
        # Waited for, so that the next trainer finds the GPU's memory free and no zombie is left.
        self._process.wait()
        self._connection.close()

    def _exit_message(self) -> str:
        # The connection breaks a moment before the process is gone: without the wait there is
        # no exit code yet, and the cause would be lost.
        code = self._process.wait()
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL: the kernel's out-of-memory killer, or an operator)"
        elif code < 0:
            how = f"died of {signal.Signals(-code).name}"
        else:
            how = f"exited with code {code}"
        return f"the trainer process {how}; its log is {self._log}"
