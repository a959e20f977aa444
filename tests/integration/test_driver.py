"""A server that says nothing counts as lost, in our engine and in Optuna's."""

import signal
import socket
import time

import psycopg2
import pytest
from sqlalchemy import text

from nbtl_search.errors import StorageLostError
from nbtl_search.ledger import database
from nbtl_search.postgres.connection import connections, storage_errors

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


@pytest.fixture
def impatient(database_url):
    opened = database.connect(database_url, home=None, answer_s=0.5)
    yield opened
    opened.close()


def test_a_silent_server_is_lost_within_the_limit(impatient):
    started = time.monotonic()
    with (
        pytest.raises(StorageLostError, match=r"within 0\.5 s"),
        storage_errors(),
        impatient.engine.connect() as connection,
    ):
        connection.execute(text("SELECT pg_sleep(20)"))
    assert 0.4 < time.monotonic() - started < 10


def test_afterwards_a_new_connection_serves(impatient):
    with pytest.raises(StorageLostError), storage_errors():  # noqa: SIM117
        with impatient.engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(20)"))
    with impatient.engine.connect() as connection:
        assert connection.execute(text("SELECT 42")).scalar_one() == 42


def test_optunas_connections_have_the_limit_too(impatient):
    engine = impatient.optuna._backend.engine
    with pytest.raises(StorageLostError), storage_errors(), engine.connect() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))


def test_a_server_that_takes_a_connection_and_says_nothing_is_lost():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StorageLostError, match=r"within 0\.5 s"):
            database.connect(f"postgresql://u:p@127.0.0.1:{port}/d", home=None, answer_s=0.5)


def test_an_answer_that_keeps_coming_is_not_cut_off(impatient):
    with impatient.engine.connect() as connection:
        rows = connection.execute(text("SELECT repeat('x', 1000) FROM generate_series(1, 20000)"))
        assert len(rows.all()) == 20_000


def test_a_signal_is_heard_while_the_server_is_silent(impatient):
    class Heard(BaseException):  # as KeyboardInterrupt is one
        pass

    def hear(_number, _frame):
        raise Heard

    old = signal.signal(signal.SIGALRM, hear)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Heard), impatient.engine.connect() as connection:
            connection.execute(text("SELECT pg_sleep(20)"))
    finally:
        signal.signal(signal.SIGALRM, old)


def test_connections_of_others_wait_as_long_as_the_default(server_url):
    connections(0.2)
    connection = psycopg2.connect(
        host=server_url.query.get("host", server_url.host),
        port=server_url.query.get("port", server_url.port),
        user=server_url.username,
        password=server_url.password,
        dbname=server_url.database,
    )
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.5), 42")
        assert cursor.fetchone()[1] == 42
    connection.close()
