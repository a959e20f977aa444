"""The database of the studies: from a URL, or the embedded one, to engines with few connections."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError

from nbtl_search.errors import UPGRADE_COMMAND, SchemaError, StorageError, StorageLostError
from nbtl_search.ledger import locks, schema
from nbtl_search.postgres import server
from nbtl_search.postgres.connection import connections, storage_errors

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from nbtl_search.ledger.optuna_storage import CachedStorage, FastRDBStorage

OLDEST_POSTGRES: Final = 13
OPTUNA_TABLES: Final = "v3.2.0.a"  # by Optuna 5.0
ANSWER_S: Final = 60.0
PROGRAM: Final = "nbtl-search"
_TABLES: Final = ("studies", "version_info", "alembic_version")
_NAME_BYTES: Final = 63  # Postgres cuts longer ones, with a notice
# A transaction that nobody goes on with holds locks that others wait for: a frozen worker is cut
# off after a lease's time. What needs longer says so (`locks`).
_SESSION: Final = "-c timezone=UTC -c idle_in_transaction_session_timeout=60s"
# What libpq can do against a peer that is gone. It does not help where the other kernel answers and
# the server does not: for that each wait has a limit of ours (`postgres.connection`).
_CONNECTION: Final[dict[str, Any]] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Storage:
    """A database that answers: ours through `engine`, Optuna's through `optuna`.

    Three connections at most: two for the ledger (a reservation holds one while it asks Optuna,
    and the heart beats on the other), one for Optuna. Neither repr shows the password.
    """

    url: URL
    engine: Engine
    application: str
    answer_s: float
    home: Path | None = None
    """Of the embedded one, if it is that."""

    @cached_property
    def optuna(self) -> "CachedStorage":
        """Optuna's storage, cached; opened at first use, when its tables must be there.

        Raises:
            SchemaError: they are missing or of another version; the message has the command.
            StorageError: the database refuses.
        """
        from nbtl_search.ledger.optuna_storage import CachedStorage  # noqa: PLC0415  (slow, not always used)

        with storage_errors():
            return CachedStorage(_open_optuna(self))

    def revive(self) -> None:
        """Start the embedded server again if it died; of any other nothing is known here."""
        if self.home is not None:
            with contextlib.suppress(StorageError):  # whoever waits for it will try again
                server.revive(self.home)

    def close(self) -> None:
        """Close all connections; a later use opens them again."""
        self.engine.dispose()
        opened = self.__dict__.get("optuna")
        if opened is not None:
            opened.remove_session()
            opened._backend.engine.dispose()  # noqa: SLF001  (Optuna has no other way)


def connect(
    url: str | None,
    *,
    home: Path | None,
    application: str = PROGRAM,
    answer_s: float = ANSWER_S,
) -> Storage:
    """Connect to the database at this URL, or start and use the embedded one.

    Args:
        url: of a PostgreSQL server; None for the embedded one.
        home: the folder of the embedded one; None where a URL is given.
        application: a name that the server shows for our connections.
        answer_s: how long the server may say nothing before it counts as lost.

    Raises:
        StorageError: no PostgreSQL, too old, or it refuses; one line, never with the password.
        StorageLostError: it does not answer.
    """
    if url is not None:
        parsed = parse_url(url)
    elif home is not None:
        parsed = server.start(home)
    else:
        message = "connect() needs a URL or the home of the embedded database, got neither"
        raise StorageError(message)
    engine = create_engine(parsed, **_pool(parsed, application, answer_s, size=1, overflow=1))
    storage = Storage(
        url=parsed,
        engine=engine,
        application=application,
        answer_s=answer_s,
        home=home if url is None else None,
    )
    try:
        with storage_errors(), engine.connect() as connection:
            _check_version(connection)
    except StorageLostError as error:
        engine.dispose()
        where = f"{parsed.host}:{parsed.port or 5432}"
        if parsed.host is None or parsed.host in str(error):
            raise
        message = f"{error}; asked {where}"
        raise StorageLostError(message) from error
    except BaseException:
        engine.dispose()
        raise
    return storage


def parse_url(url: str) -> URL:
    """Return the URL of a PostgreSQL database, with our driver and the password out of sight.

    Raises:
        StorageError: it is no such URL; the message quotes nothing that may be secret.
    """
    hint = "give postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        message = f"the storage must be the URL of a PostgreSQL database, got none; {hint}"
        raise StorageError(message) from None
    scheme = parsed.drivername.partition("+")[0]
    if scheme not in {"postgres", "postgresql"}:
        message = f"the storage must be a PostgreSQL database, got a URL of {scheme!r}; {hint}"
        raise StorageError(message)
    if "@" in (parsed.host or ""):
        message = f"the storage URL must have one '@', got more; write others as %40; {hint}"
        raise StorageError(message)
    secret = parsed.query.get("password")
    if isinstance(secret, str):
        parsed = parsed.difference_update_query(["password"]).set(password=secret)
    return parsed.set(drivername="postgresql+psycopg2")


def create_or_upgrade(storage: Storage) -> None:
    """Make Optuna's tables and ours, or bring them to the versions this code needs.

    Raises:
        SchemaError: they are newer than this code.
        StorageError: the database refuses.
    """
    # Optuna makes its tables in connections of its own, which see no lock of ours: so whoever would
    # make them waits here first.
    with storage_errors(), storage.engine.begin() as connection:
        locks.take_optuna_tables(connection)
        opened = _rdb(storage, overflow=1)
        try:
            if opened.get_current_version() != opened.get_head_version():
                _refuse_newer(opened)
                with _logging_left_alone():
                    opened.upgrade()
        finally:
            opened.remove_session()
            opened.engine.dispose()
    with storage_errors():
        schema.create_or_upgrade(storage.engine)


def check(storage: Storage) -> None:
    """Make sure that the tables are of the versions this code needs, and change nothing.

    Raises:
        SchemaError: they are missing, older or newer; the message has the command to run.
        StorageError: the database refuses.
    """
    with storage_errors():
        schema.check(storage.engine)
        _check_optuna(storage)


def _check_version(connection: Connection) -> None:
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one()) // 10_000
    if version < OLDEST_POSTGRES:
        message = (
            f"the database must be PostgreSQL {OLDEST_POSTGRES} or newer, got version {version}; "
            "upgrade the server or give another by --storage"
        )
        raise StorageError(message)


def _check_optuna(storage: Storage) -> None:
    """Do for Optuna's tables what `check` does; Optuna itself is asked only where it must be."""
    current = _optuna_version(storage.engine)
    if current != OPTUNA_TABLES:
        opened = _rdb(storage, overflow=0, skip_table_creation=True)
        try:
            _refuse_other(opened, current)
        finally:
            opened.remove_session()
            opened.engine.dispose()


def _open_optuna(storage: Storage) -> "FastRDBStorage":
    current = _optuna_version(storage.engine)  # before Optuna fills in what is missing
    opened = _rdb(storage, overflow=0, skip_table_creation=True)
    _refuse_other(opened, current)
    return opened


def _optuna_version(engine: Engine) -> str:
    """Return the version of Optuna's tables.

    Raises:
        SchemaError: there are none, or not all; the message has the command to run.
    """
    current: str | None = None
    with engine.connect() as connection:
        found = inspect(connection)
        if all(found.has_table(table) for table in _TABLES):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current is None:
        message = f"the database has no Optuna tables; run: {UPGRADE_COMMAND}"
        raise SchemaError(message)
    return current


def _refuse_other(opened: "RDBStorage", current: str) -> None:
    """Refuse tables that are not of the version that the installed Optuna needs.

    Raises:
        SchemaError: they are older or newer; the message has the command to run.
    """
    needed = opened.get_head_version()
    if current == needed:
        return
    _refuse_newer(opened)
    message = (
        f"Optuna's tables must be of version {needed!r}, got {current!r}; run: {UPGRADE_COMMAND}"
    )
    raise SchemaError(message)


def _refuse_newer(opened: "RDBStorage") -> None:
    """Refuse tables of a version that the installed Optuna does not know.

    Raises:
        SchemaError: they are.
    """
    current = opened.get_current_version()
    if current not in opened.get_all_versions():
        message = (
            f"Optuna's tables must be of version {opened.get_head_version()!r} or older, got the "
            f"unknown {current!r}; upgrade nbtl-search on this machine"
        )
        raise SchemaError(message)


def _rdb(storage: Storage, *, overflow: int, **options: Any) -> "FastRDBStorage":
    import optuna  # noqa: PLC0415  (as above)

    from nbtl_search.ledger.optuna_storage import FastRDBStorage  # noqa: PLC0415  (as above)

    optuna.logging.disable_default_handler()  # from its first use on, its messages go where ours go
    optuna.logging.enable_propagation()
    return FastRDBStorage(
        storage.url.render_as_string(hide_password=False),
        engine_kwargs=_pool(
            storage.url, storage.application, storage.answer_s, size=1, overflow=overflow
        ),
        skip_compatibility_check=True,  # it needs a second connection, and names another command
        **options,
    )


@contextlib.contextmanager
def _logging_left_alone() -> Iterator[None]:
    """Keep Optuna's migrations from configuring logging, as they do where no handler is set."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


def _pool(
    url: URL, application: str, answer_s: float, *, size: int, overflow: int
) -> dict[str, Any]:
    """Return the arguments of `create_engine`; what the URL says of the connection goes first."""
    name = application.encode()[:_NAME_BYTES].decode(errors="ignore")
    ours = _CONNECTION | {"application_name": name, "options": _SESSION}
    given = url.query.get("options")
    if isinstance(given, str):
        ours["options"] = f"{_SESSION} {given}"
    arguments = {key: ours[key] for key in ours if key == "options" or key not in url.query}
    arguments["connection_factory"] = connections(answer_s)
    return {
        "pool_size": size,
        "max_overflow": overflow,
        # A connection that died in the pool is found out before use, not in a statement whose fate
        # nobody knows; a lost answer inside a transaction is for its caller to do again.
        "pool_pre_ping": True,
        "pool_timeout": 30,
        "pool_recycle": 1800,
        "connect_args": arguments,
    }
