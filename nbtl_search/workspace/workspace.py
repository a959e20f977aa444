"""The home folder.

Where a verb works: the database, and a study in it.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import platformdirs

from nbtl_search.ledger.database import (
    ANSWER_S,
    PROGRAM,
    Storage,
    check,
    connect,
)
from nbtl_search.study import store
from nbtl_search.study.store import Study


def default_home() -> Path:
    """Return the user's data folder of this program."""
    return platformdirs.user_data_path("nbtl-search")


@contextmanager
def opened(
    url: str | None,
    home: Path,
    *,
    checked: bool = True,
    answer_s: float = ANSWER_S,
    application: str = PROGRAM,
) -> Iterator[Storage]:
    """Open the database at this URL, or the embedded one of this home.

    Args:
        url: of a PostgreSQL database; None for the embedded one.
        home: of the embedded one.
        checked: whether its tables must already be of this program's version.
        answer_s: how long the database may say nothing before it counts as lost.
        application: the name of our connections in `pg_stat_activity`.

    Raises:
        SchemaError: they are not; the message has the command to run.
        StorageError: the database refuses, or does not answer.
    """
    with closing(connect(url, home=home, answer_s=answer_s, application=application)) as storage:
        if checked:
            check(storage)
        yield storage


@contextmanager
def opened_study(
    name: str,
    url: str | None,
    home: Path,
    *,
    answer_s: float = ANSWER_S,
    application: str = PROGRAM,
) -> Iterator[Study]:
    """Open a study.

    Raises:
        StudyNotFoundError: no such study.
        StorageError: the database refuses, or does not answer.
    """
    with opened(url, home, answer_s=answer_s, application=application) as storage:
        yield store.open_study(storage, name)
