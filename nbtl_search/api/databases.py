"""Back the database up, and bring a backup back."""

from pathlib import Path

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened
from nbtl_search.study import backup as backups
from nbtl_search.study.backup import Restored


def backup(
    target: Path, *, force: bool = False, home: Path | None = None, storage: str | None = None
) -> int:
    """Write all studies into a file, while workers run; return its size in bytes.

    Raises:
        StorageError: the file exists or cannot be written, or the database refuses.
    """
    with opened(storage, home or default_home()) as database:
        return backups.backup(database, target.absolute(), force=force)


def restore(
    source: Path, *, replace: bool = False, home: Path | None = None, storage: str | None = None
) -> Restored:
    """Bring the database to the state of a backup; after any error it is as before.

    Raises:
        SchemaError: the backup is of a newer nbtl-search.
        StorageError: it is no backup, or there are studies and `replace` is False.
    """
    with opened(storage, home or default_home(), checked=False) as database:
        return backups.restore(database, source.absolute(), replace=replace)
