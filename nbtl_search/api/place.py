"""Where a verb works: the database, and a study in it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna

from nbtl_search.study import store
from nbtl_search.study.storage import Storage, connect
from nbtl_search.study.store import Study


@contextmanager
def opened(url: str | None, home: Path) -> Iterator[Storage]:
    """Open the database at this URL, or the embedded one of this home.

    Raises:
        StorageError: it refuses, or does not answer.
    """
    optuna.logging.disable_default_handler()  # its messages go where ours go
    optuna.logging.enable_propagation()
    with closing(connect(url, home=home)) as storage:
        yield storage


@contextmanager
def opened_study(name: str, url: str | None, home: Path) -> Iterator[Study]:
    """Open a study.

    Raises:
        StudyNotFoundError: no such study.
        StorageError: the database refuses, or does not answer.
    """
    with opened(url, home) as storage:
        yield store.open_study(storage, name)
