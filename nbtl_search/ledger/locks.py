"""The advisory locks of the database: every key in one place, so that no two subjects share one.

A key is any number that all processes agree on. All of these locks end with their transaction:
Postgres gives them back when their holder commits, is killed or loses its connection. So nobody has
to clean up, and a lock is worth only as much as the transaction that holds it (`make_sure`).

Postgres keeps keys of one number and keys of two apart; within each kind the keys below differ.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, Engine, text

_OUR_TABLES: Final = 6031769
"""Guards the making and upgrading of our tables."""

_OPTUNA_TABLES: Final = 6031770
"""Guards the making and upgrading of Optuna's tables. A key of its own: Optuna upgrades in a
connection of its own, while ours waits here."""

_RESERVATIONS: Final = 6031771
"""With a study's id: guards the slots of its budget and the asking of its sampler."""

_NAMES: Final = 6031771
"""The salt of a hash of a study's name: guards its making, deleting, finalising and its note."""

RESERVE_S: Final = 30
QUEUE_S: Final = 20


def take_our_tables(connection: Connection) -> None:
    """Be the only one to make or upgrade our tables, until the transaction ends."""
    _take(connection, _OUR_TABLES)


def take_optuna_tables(connection: Connection) -> None:
    """Be the only one to make or upgrade Optuna's tables, until the transaction ends."""
    _take(connection, _OPTUNA_TABLES)


def take_reservations(connection: Connection, study_id: int) -> None:
    """Be the only one to reserve a slot of this study, until the transaction ends.

    Askers queue here and not at the study's row. There a waiter stands in two lines, for the row
    and then for the transaction that changes it, each with a limit of its own: 64 workers took a
    healthy server for lost 121 times in one run (benchmarks/load.py).
    """
    # Both limits hold for this transaction only. The first cuts off a holder that hangs in Optuna,
    # which gives its slot back; by the second a waiter gives up, sends a heartbeat, and asks again.
    connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{RESERVE_S}s'"))
    connection.execute(text(f"SET LOCAL lock_timeout = '{1000 * QUEUE_S:.0f}ms'"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:key, :study)"),
        {"key": _RESERVATIONS, "study": study_id},
    )


@contextlib.contextmanager
def holding_name(engine: Engine, name: str) -> Iterator[Connection]:
    """Be the only one to make, delete or finalise the study of this name while the block runs."""
    with engine.begin() as connection:
        # The holder is idle in its transaction while Optuna works over another connection. Our
        # usual limit for that (60 s) would drop the lock in the middle of a large study.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
        connection.execute(
            text("SELECT pg_advisory_xact_lock(hashtextextended(:name, :salt))"),
            {"name": name, "salt": _NAMES},
        )
        yield connection


def make_sure(connection: Connection) -> None:
    """Raise the database's error if the transaction, and with it the lock, was lost meanwhile.

    Before what cannot be undone: what was prepared without the lock may be another's by now.
    """
    connection.execute(text("SELECT 1"))


def _take(connection: Connection, key: int) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
