"""The version of Optuna's tables, read without Optuna, whose import takes half a second."""

from typing import TYPE_CHECKING, Final

from sqlalchemy import Engine, inspect, text

from nbtl_search.errors import SchemaError
from nbtl_search.study.schema import UPGRADE_COMMAND

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

NEEDED: Final = "v3.2.0.a"  # by Optuna 5.0
_TABLES: Final = ("studies", "version_info", "alembic_version")


def version(engine: Engine) -> str:
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


def refuse_other(opened: "RDBStorage", current: str) -> None:
    """Refuse tables that are not of the version that the installed Optuna needs.

    Raises:
        SchemaError: they are older or newer; the message has the command to run.
    """
    needed = opened.get_head_version()
    if current == needed:
        return
    refuse_newer(opened)
    message = (
        f"Optuna's tables must be of version {needed!r}, got {current!r}; run: {UPGRADE_COMMAND}"
    )
    raise SchemaError(message)


def refuse_newer(opened: "RDBStorage") -> None:
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
