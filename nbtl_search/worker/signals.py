"""Signals as a request to stop: SIGTERM, SIGINT and a cluster's warnings."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final


@final
class Stop:
    """A request to stop, which only ever goes from no to yes: a second signal changes nothing."""

    def __init__(self) -> None:
        self._event = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def request(self) -> None:
        """Request a stop."""
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Wait so long, or until a stop is requested."""
        self._event.wait(seconds)


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Turn SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 into a request to stop while the block runs.

    The last two are a cluster's warnings before a time limit, which reach every process of a task.
    """
    stop = Stop()

    # Only a flag: a handler runs between any two instructions, also within a transaction or while
    # a lock is held, where it must neither raise nor talk to the database.
    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.request()

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        # The old handlers come back: in a notebook or a test, Ctrl-C must again interrupt.
        for number, handler in old.items():
            signal.signal(number, handler)
