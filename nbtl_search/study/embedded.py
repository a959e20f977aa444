"""The embedded Postgres: a server of our own below NBTL_HOME, on a Unix socket only.

Whoever needs the database starts it; it outlives them, until `stop`. Every client needs the random
password below home, and the socket lies in a folder that only the server's account can enter.
"""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

from nbtl_search.errors import StorageError, StorageLostError
from nbtl_search.study import account, pgdata, postmaster, serving
from nbtl_search.study.account import Account
from nbtl_search.study.pgdata import Files
from nbtl_search.study.serving import Serving

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of an embedded server."""

    running: bool
    pid: int | None
    version: int | None
    socket: Path
    data_mb: float
    serves: str | None = None
    """The network address it listens on, and the network it answers to."""


def start(home: Path) -> URL:
    """Make the server run, and return the URL of its database; its repr hides the password.

    Any number of processes may do this at once. The first makes the database if there is none.

    Raises:
        StorageError: it cannot be made or started; the message says why.
        StorageLostError: it is not ready after a minute, which a later call may find otherwise.
    """
    with _one_line(home):
        home.mkdir(parents=True, exist_ok=True)
        files, owner = Files.below(home), account.of_server()
        pgdata.private_folder(files.root, owner, shared=not owner.is_ours)
        with _locked(files):
            server = postmaster.running(files)
            if server is None or not postmaster.becomes_ready(files, server.pid):
                _prepare(files, owner)
                _keep_the_sockets_name(files)
                postmaster.start(files, owner)
                logger.info("embedded Postgres started", extra={"action": "db_start"})
            pgdata.private_folder(files.socket, owner)
        return _url(files, owner)


def revive(home: Path) -> None:
    """Start the server again if it died; one that was stopped on purpose stays so.

    A server that stops removes its pid file, one that is killed leaves it.

    Raises:
        StorageError: it cannot be started.
        StorageLostError: it is not ready after a minute.
    """
    with _one_line(home):
        files = Files.below(home)
        died = files.pid.exists() and postmaster.running(files) is None
    if died:
        logger.warning("embedded Postgres died; starting it", extra={"action": "db_revive"})
        start(home)


def stop(home: Path) -> bool:
    """Stop the server, ending its clients' connections; tell whether it was running.

    Raises:
        StorageError: it runs on another machine, or belongs to someone else.
        StorageLostError: it does not stop.
    """
    with _one_line(home):
        files = Files.below(home)
        if not files.data.exists():
            return False
        with _locked(files):
            server = postmaster.running(files)
            if server is None:
                return False
            postmaster.end(files, server)
            if files.socket.parent != files.root:  # leave nothing in the temporary folder
                with contextlib.suppress(OSError):
                    files.socket.rmdir()
    logger.info("embedded Postgres stopped", extra={"action": "db_stop"})
    return True


def serve(home: Path, wanted: Serving | None) -> Path | None:
    """Listen on a network address as well, or (None) on the socket only again.

    Where that changes anything the server is restarted; workers wait and go on.

    Returns:
        The file, readable by us only, that holds the URL for other machines; None without one.

    Raises:
        StorageError: it cannot listen there; all is as before then.
    """
    start(home)
    with _one_line(home):
        files = Files.below(home)
        before = serving.kept(files)
        if wanted != before:
            if wanted is not None and _endpoint(wanted) != _endpoint(before):
                serving.check_free(wanted)
            _set(files, wanted)
            stop(home)
            try:
                start(home)
            except StorageError:
                _set(files, before)
                start(home)
                raise
            logger.info("embedded Postgres serves %s", wanted, extra={"action": "db_serve"})
        return served(home)


def served(home: Path) -> Path | None:
    """Return the file with the URL for other machines, while the server listens for them."""
    files = Files.below(home)
    return serving.address(files) if serving.kept(files) is not None else None


def status(home: Path) -> Status:
    """Return what is known of the server, without starting it.

    Raises:
        StorageError: it runs on another machine, or belongs to someone else.
    """
    with _one_line(home):
        files = Files.below(home)
        server = postmaster.running(files)
        listens = serving.kept(files)
        return Status(
            running=server is not None,
            pid=None if server is None else server.pid,
            version=pgdata.version_of(files),
            socket=files.socket,
            data_mb=round(_size_bytes(files.data) / 1e6, 1),
            serves=None if listens is None else _told(listens),
        )


def _set(files: Files, wanted: Serving | None) -> None:
    if wanted is None:
        serving.forget(files)
    else:
        serving.keep(files, wanted)


def _endpoint(chosen: Serving | None) -> tuple[str, int] | None:
    return None if chosen is None else (chosen.host, chosen.port)


def _told(listens: Serving) -> str:
    return f"{listens.host}:{listens.port} to {listens.allow}"


def _keep_the_sockets_name(files: Files) -> None:
    """Let the socket be found under its usual name where the server's port is another."""
    listens = serving.kept(files)
    usual = files.socket / f".s.PGSQL.{pgdata.PORT}"
    if listens is not None and listens.port != pgdata.PORT:
        usual.unlink(missing_ok=True)
        usual.symlink_to(f".s.PGSQL.{listens.port}")


def _prepare(files: Files, owner: Account) -> None:
    if not owner.is_ours:
        account.let_through(owner, files.root)
    pgdata.initialise(files, owner)
    listens = serving.kept(files)
    if listens is None:
        pgdata.configure(files, owner)
    else:
        pgdata.configure(files, owner, more=listens.settings, access=listens.access)
    pgdata.private_folder(files.data, owner)
    pgdata.private_folder(files.socket, owner)


def _url(files: Files, owner: Account) -> URL:
    where = {"host": str(files.socket), "port": str(pgdata.PORT), "requirepeer": owner.name}
    return URL.create(
        "postgresql+psycopg2",
        username=pgdata.USER,
        password=pgdata.read_password(files),
        database="postgres",
        query=where,
    )


@contextlib.contextmanager
def _locked(files: Files) -> Iterator[None]:
    """Hold the lock of this server; the system gives it back whatever becomes of us."""
    deadline = time.monotonic() + 2 * postmaster.WAIT_S
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(files.lock, flags, 0o600), "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    message = (
                        f"another process has held {str(files.lock)!r} for "
                        f"{2 * postmaster.WAIT_S:.0f} s; end it, or try again later"
                    )
                    raise StorageLostError(message) from error
                time.sleep(postmaster.POLL_S)
        yield


@contextlib.contextmanager
def _one_line(home: Path) -> Iterator[None]:
    """Turn what the system refuses into one line of ours."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename!r}: {error.strerror}" if error.filename else str(error)
        message = (
            f"the embedded database must be able to use the folder {str(home)!r}, got {what}; "
            "mend it, set another NBTL_HOME, or give a database by --storage"
        )
        raise StorageError(message) from error


def _size_bytes(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the server makes and removes files
                size += Path(place, name).lstat().st_size
    return size
