"""Connection to any Postgres: a limit to every wait, its errors in our words, waiting for it.

libpq waits without end for a server whose connection stands and which says nothing: a stalled
network, a frozen server. TCP's own limits do not help, the other side's kernel answers them. With a
wait callback (psycopg2's documentation, "Support for coroutine libraries") every wait is ours, and
a signal is handled while it lasts.
"""

import contextlib
import random
import select
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import psycopg2
from psycopg2 import extensions
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from nbtl_search.errors import UPGRADE_COMMAND, SchemaError, StorageError, StorageLostError

T = TypeVar("T")
# Postgres's error codes (its appendix A) after which the same thing may succeed later: lost
# connections, a server that restarts, lacks resources or is a standby, deadlocks, lost snapshots.
_PASSING: Final = ("08", "53", "57P", "57014", "25P03", "25006", "40", "55P03", "58")
_REFUSED: Final = ("28", "3D", "42501")
_MISSING_TABLE: Final = ("42P01", "42703", "3F000")
# A refused connection has no code, only libpq's text. What is not in this list may pass: a worker
# had better wait for it than die of it.
_REFUSING_TEXTS: Final = (
    "password authentication failed",
    "no password supplied",
    "authentication failed",
    "does not exist",
    "could not translate host name",
    "no pg_hba.conf entry",
    "is not permitted to log in",
    "permission denied",
    "requirepeer",
    "invalid",
    "unsupported",
    "certificate",
    "does not support ssl",
)
_PASSING_TEXTS: Final = ("temporary failure in name resolution", "no such file or directory")


class Connection(extensions.connection):  # type: ignore[misc]  # psycopg2 has no types
    """A connection that is closed when the server says nothing for `answer_s` seconds."""

    answer_s: float = 60.0


def connections(answer_s: float) -> type[Connection]:
    """Return the class of connections with this limit, and make psycopg2 heed such limits."""
    extensions.set_wait_callback(_wait)
    return type("Connection", (Connection,), {"answer_s": answer_s})


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn errors of the database, also inside Optuna's, into ours, in one line.

    What is the program's own fault (a wrong statement, a broken constraint) passes unchanged.

    Raises:
        StorageLostError: the database does not answer now, or asks to try again.
        SchemaError: a table or column is missing.
        StorageError: the database refuses.
    """
    try:
        yield
    except Exception as error:
        ours = _translated(error)
        if ours is None:
            raise
        raise ours from error


def wait_for(
    action: Callable[[], T],
    *,
    deadline: float,
    first_s: float = 0.5,
    longest_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
) -> T:
    """Return what the action returns; while the database is lost, try again until the deadline.

    The n-th pause is uniform in [0, min(longest_s, first_s * 2^n)] ("full jitter", M. Brooker,
    2015), so that workers which lost the database together do not come back together.

    Args:
        action: what to do; any error but StorageLostError ends the waiting.
        deadline: on `clock`; the action is tried at least once.
        first_s: bound of the first pause.
        longest_s: bound of any pause.
        clock: seconds that only grow.
        sleep: pauses for so many seconds; it may raise to end the waiting.
        uniform: draws from an interval.

    Raises:
        StorageLostError: the database is still lost at the deadline.
    """
    bound_s = first_s
    while True:
        try:
            return action()
        except StorageLostError:
            left_s = deadline - clock()
            if left_s <= 0:
                raise
        sleep(min(left_s, uniform(0, bound_s)))
        bound_s = min(longest_s, 2 * bound_s)


def _wait(connection: extensions.connection) -> None:
    """Wait for the server; psycopg2 closes a connection whose wait raises."""
    limit_s = getattr(connection, "answer_s", Connection.answer_s)
    deadline = time.monotonic() + limit_s
    while (state := connection.poll()) != extensions.POLL_OK:
        wanted = select.POLLIN if state == extensions.POLL_READ else select.POLLOUT
        poll = select.poll()
        poll.register(connection.fileno(), wanted)
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not poll.poll(1000 * left_s):
            message = f"the server must answer within {limit_s:g} s, and said nothing"
            raise psycopg2.OperationalError(message)


def _translated(error: BaseException) -> StorageError | None:
    """Return our error for one that comes from the database, also through `raise ... from`."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, SQLAlchemyError):
        found = found.__cause__
    if isinstance(found, PoolTimeoutError):
        return StorageLostError("all connections to the database are in use; try again")
    if isinstance(found, PendingRollbackError):  # Optuna tried on in a transaction that was lost
        return StorageLostError("the database does not answer now: a transaction was cut off")
    if not isinstance(found, DBAPIError):
        return None
    return _of_database(found)


def _of_database(error: DBAPIError) -> StorageError | None:
    line = _one_line(error)
    code = getattr(error.orig, "pgcode", None) or ""
    if code.startswith(_MISSING_TABLE):
        return SchemaError(f"the database lacks a table: {line}; run: {UPGRADE_COMMAND}")
    if code.startswith(_REFUSED):
        return StorageError(f"the database refuses: {line}")
    if code.startswith(_PASSING) or error.connection_invalidated:
        return StorageLostError(f"the database does not answer now: {line}")
    return None if code else _of_connection(error, line)


def _of_connection(error: DBAPIError, line: str) -> StorageError | None:
    if "invalid dsn" in line:
        return StorageError(f"the storage URL has an unknown part: {line}; check --storage")
    if not isinstance(error, OperationalError):
        return None
    said = line.lower()
    passing = any(text in said for text in _PASSING_TEXTS)
    if not passing and any(text in said for text in _REFUSING_TEXTS):
        return StorageError(f"the database refuses the connection: {line}; check --storage")
    return StorageLostError(f"the database does not answer: {line}")


def _one_line(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())[:400]
