"""Backups of the database, by the pg_dump, pg_restore and psql of the shipped Postgres.

A backup is one consistent snapshot, taken while workers run. It is restored in one transaction; in
the same one all leases are released and the fencing tokens jump ahead, so that no worker from
before can write into what was restored.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import func, inspect, select, text

from nbtl_search.errors import SchemaError, StorageError
from nbtl_search.files.atomic import flush
from nbtl_search.ledger import schema
from nbtl_search.ledger.database import Storage, create_or_upgrade
from nbtl_search.postgres import data_folder
from nbtl_search.postgres.connection import storage_errors

_OLD_NAMES: Final = ("nbtl_notice",)  # of tables, before version 4
_LOCKS_S: Final = 60
# Tokens only have to differ from every one that was given out after the backup was taken. New uids
# keep its trials away from checkpoints of trials that it has never heard of.
_FENCE: Final = """
RESET search_path;
SELECT setval('nbtl_token', (SELECT last_value FROM nbtl_token) + 1000000000);
UPDATE nbtl_trial SET state = 'waiting', lease_expires = NULL, worker = NULL
WHERE state = 'running';
UPDATE nbtl_attempt SET ended_at = now(), cause = 'infra', message = 'the database was restored'
WHERE ended_at IS NULL;
UPDATE nbtl_study SET uid = gen_random_uuid()::text;
"""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a restore did."""

    n_studies: int
    from_version: int


def backup(storage: Storage, target: Path, *, force: bool = False) -> int:
    """Write a backup; return its size in bytes. The file is there whole or not at all.

    Raises:
        StorageError: the file exists, cannot be written, or the server is too new for our pg_dump.
    """
    if target.exists() and not force:
        message = f"the backup must be a new file, got {str(target)!r}, which exists; add --force"
        raise StorageError(message)
    _check_major(storage, at_least=1)
    with _writing(target), tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "backup"
        command = ["--format=custom", "--no-owner", "--no-privileges", f"--file={made}"]
        _run(storage, "pg_dump", *command)
        flush(made)
        made.chmod(0o600)
        made.replace(target)
        flush(target.parent)
        return target.stat().st_size


def restore(storage: Storage, source: Path, *, replace: bool = False) -> Restored:
    """Bring a database to the state of a backup; after any error it is as before.

    Args:
        storage: the database; its tables need not exist.
        source: the backup.
        replace: even if there are studies in it, which are lost.

    Raises:
        SchemaError: the backup is of a newer nbtl-search.
        StorageError: it is no backup of ours, or there are studies and `replace` is False.
    """
    version = _version_in(source)
    if version > schema.VERSION:
        message = (
            f"the backup must be of tables of version {schema.VERSION} or older, got {version}; "
            "upgrade nbtl-search on this machine"
        )
        raise SchemaError(message)
    n_studies = count_studies(storage)
    if n_studies and not replace:
        message = (
            f"the database must have no studies, got {n_studies}, which would be lost; give "
            "another database, or say --replace"
        )
        raise StorageError(message)
    _check_major(storage, at_least=13)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "restore.sql"
        options = ["--clean", "--if-exists", "--no-owner", "--no-privileges"]
        _run(None, "pg_restore", *options, f"--file={script}", str(source))
        _make_old_servers_understand(script)
        with script.open("a", encoding="utf-8") as file:
            file.write(_FENCE)
        storage.close()  # our own idle connections would be waited for
        _run(
            storage, "psql", "--no-psqlrc", "--quiet", "--single-transaction",
            "--set=ON_ERROR_STOP=1", f"--command=SET lock_timeout = '{_LOCKS_S}s'",
            "--command=SET client_min_messages = warning",  # tables that are not there: no news
            f"--command={_drop_ours()}", f"--file={script}",
        )  # fmt: skip
    create_or_upgrade(storage)
    return Restored(n_studies=count_studies(storage), from_version=version)


def _drop_ours() -> str:
    """Return the statement that removes our tables, whatever version they are of.

    The backup's own script removes only the tables and constraints it has: one of an older version
    knows nothing of a newer table that refers to those, and Postgres would refuse.
    """
    names = (*_OLD_NAMES, *(table.name for table in schema.metadata.sorted_tables))
    return f"DROP TABLE IF EXISTS {', '.join(names)} CASCADE"


def count_studies(storage: Storage) -> int:
    """Return how many studies, final runs included, the database has; 0 without our tables."""
    with storage_errors():
        if not inspect(storage.engine).has_table(schema.study.name):
            return 0
        with storage.engine.connect() as connection:
            return connection.execute(select(func.count()).select_from(schema.study)).scalar_one()


def _version_in(source: Path) -> int:
    """Return the version of our tables in a backup."""
    listing = _run(
        None, "pg_restore", "--data-only", f"--table={schema.meta.name}", "--file=-", str(source)
    )
    rows = re.search(r"^COPY .*?;\n(.*?)^\\\.$", listing, re.DOTALL | re.MULTILINE)
    if rows is None:
        message = f"{str(source)!r} must be a backup of nbtl-search, and has no tables of it"
        raise StorageError(message)
    return max(int(line) for line in rows.group(1).split())


def _check_major(storage: Storage, *, at_least: int) -> None:
    """Make sure that the shipped programs understand this server."""
    with storage_errors(), storage.engine.connect() as connection:
        number = connection.execute(text("SHOW server_version_num")).scalar_one()
    major = int(number) // 10_000
    if not at_least <= major <= data_folder.MAJOR:
        message = (
            f"the server must be PostgreSQL {data_folder.MAJOR} or older for our pg_dump, "
            f"got {major}; "
            "use the pg_dump and pg_restore of that server"
        )
        raise StorageError(message)


def _make_old_servers_understand(script: Path) -> None:
    """Leave out the one setting that servers before 17 do not know."""
    content = script.read_bytes()
    script.write_bytes(re.sub(rb"^SET transaction_timeout = 0;$", b"", content, flags=re.MULTILINE))


def _run(storage: Storage | None, program: str, *arguments: str) -> str:
    """Run a program of Postgres, the password in a file; return what it printed."""
    with _login(storage) as login:
        command = [str(data_folder.binary(program)), *login, *arguments]
        done = subprocess.run(
            command, env=data_folder.ENVIRONMENT, capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        message = f"{program} must succeed, got: {lines[0][:300]}"
        raise StorageError(message)
    return done.stdout


@contextmanager
def _login(storage: Storage | None) -> Iterator[list[str]]:
    """Give the option that names the database, without its password."""
    if storage is None:
        yield []
        return
    _, given = storage.engine.dialect.create_connect_args(storage.url)
    known = {key: str(value) for key, value in given.items() if key != "password"}
    password = (storage.url.password or "").replace("\\", "\\\\").replace(":", "\\:")
    with tempfile.TemporaryDirectory() as folder:
        passfile = Path(folder) / "pgpass"
        passfile.touch(mode=0o600)
        passfile.write_text(f"*:*:*:*:{password}\n", "utf-8")
        parts = known | {"passfile": str(passfile)}
        quoted = (
            "{}='{}'".format(key, value.replace("\\", "\\\\").replace("'", "\\'"))
            for key, value in parts.items()
        )
        yield [f"--dbname={' '.join(quoted)}"]


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"cannot write the backup {str(target)!r}: {error.strerror or error}"
        raise StorageError(message) from error
