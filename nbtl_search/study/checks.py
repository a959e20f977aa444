"""Checks of the database's side for `doctor`."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

from nbtl_search.errors import UPGRADE_COMMAND, NbtlError, SchemaError
from nbtl_search.ledger import schema
from nbtl_search.ledger.database import Storage, check, connect
from nbtl_search.postgres import server
from nbtl_search.postgres.connection import storage_errors
from nbtl_search.spec.machine import Check

PER_WORKER: Final = 3
_RESERVE: Final = 10
_SKEW_S: Final = 5.0
_SLOW_MS: Final = 50.0


def database(url: str | None, *, home: Path, n_workers: int) -> Iterator[Check]:
    """Look at the database; nothing is made, started or changed.

    Args:
        url: of a server; None for the embedded one.
        home: of the embedded one.
        n_workers: that are planned.
    """
    if url is None and not _embedded_runs(home):
        found = "the embedded one does not run; whoever needs it starts it"
        yield Check.of("database", found)
        return
    try:
        opened = connect(url, home=home, application="nbtl-doctor")
    except NbtlError as error:
        yield Check.of("database", str(error), problem="mend the address, or start the server")
        return
    try:
        yield from _looked_at(opened, n_workers)
    except NbtlError as error:
        yield Check.of("database", str(error), problem="see the server's log")
    finally:
        opened.close()


def _embedded_runs(home: Path) -> bool:
    return (home / "postgres").exists() and server.status(home).running


def _looked_at(opened: Storage, n_workers: int) -> Iterator[Check]:
    with storage_errors(), opened.engine.connect() as connection:
        yield _version(connection)
        yield _privileges(connection)
        yield _connections(connection, n_workers)
        yield _round_trip(connection)
        yield _clock(connection)
    yield _schema(opened)


def _version(connection: Connection) -> Check:
    version = connection.execute(text("SHOW server_version")).scalar_one()
    return Check.of("database", f"PostgreSQL {version} answers")


def _privileges(connection: Connection) -> Check:
    may = connection.execute(
        text("SELECT has_schema_privilege(current_schema(), 'CREATE, USAGE')")
    ).scalar_one_or_none()
    advice = "" if may else "GRANT USAGE, CREATE ON SCHEMA public TO this role"
    return Check.of("privileges", f"may make and use tables: {may or False}", problem=advice)


def _connections(connection: Connection, n_workers: int) -> Check:
    limit = int(connection.execute(text("SHOW max_connections")).scalar_one())
    used = connection.execute(text("SELECT count(*) FROM pg_stat_activity")).scalar_one()
    wanted = PER_WORKER * n_workers + _RESERVE
    says = f"{limit} allowed, {used} in use, up to {wanted} for {n_workers} workers and commands"
    advice = f"set max_connections = {2 * wanted} and restart the server"
    return Check.of("connections", says, problem="" if wanted <= limit else advice)


def _round_trip(connection: Connection) -> Check:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        connection.execute(text("SELECT 1")).scalar_one()
        seconds.append(time.perf_counter() - started)
    milliseconds = 1000 * sorted(seconds)[2]
    slow = "" if milliseconds < _SLOW_MS else "workers spend this several times in every epoch"
    return Check.of("round trip", f"{milliseconds:.1f} ms (median of 5)", warning=slow)


def _clock(connection: Connection) -> Check:
    theirs = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
    skew_s = (datetime.now(UTC) - theirs).total_seconds()
    says = f"{skew_s:+.1f} s against the database's"
    harmless = "leases use the database's clock and are safe; times in logs are off: run NTP"
    return Check.of("clock", says, warning="" if abs(skew_s) < _SKEW_S else harmless)


def _schema(opened: Storage) -> Check:
    try:
        check(opened)
    except SchemaError as error:
        return Check.of("tables", str(error), problem=UPGRADE_COMMAND)
    return Check.of("tables", f"ours of version {schema.VERSION}, and Optuna's, are as needed")
