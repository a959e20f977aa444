"""psycopg2 with a limit to every wait.

libpq waits without end for a server whose connection stands and which says nothing: a stalled
network, a frozen server. TCP's own limits do not help, the other side's kernel answers them. With a
wait callback (psycopg2's documentation, "Support for coroutine libraries") every wait is ours, and
a signal is handled while it lasts.
"""

import select
import time

import psycopg2
from psycopg2 import extensions


class Connection(extensions.connection):  # type: ignore[misc]  # psycopg2 has no types
    """A connection that is closed when the server says nothing for `answer_s` seconds."""

    answer_s: float = 60.0


def connections(answer_s: float) -> type[Connection]:
    """Return the class of connections with this limit, and make psycopg2 heed such limits."""
    extensions.set_wait_callback(_wait)
    return type("Connection", (Connection,), {"answer_s": answer_s})


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
