"""The embedded Postgres: a server of our own below NBTL_HOME, on a Unix socket only.

Whoever needs the database starts it; it outlives them, until `stop`. Every client needs the random
password below home, and the socket lies in a folder that only the server's account can enter.
"""

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from sqlalchemy import URL

from nbtl_search.errors import StorageError, StorageLostError
from nbtl_search.study import account, pgdata
from nbtl_search.study.account import Account
from nbtl_search.study.pgdata import Files

_logger = logging.getLogger(__name__)
_WAIT_S: Final = 60.0
_POLL_S: Final = 0.02
_LAUNCHES: Final = 5
_LOG_MAX_BYTES: Final = 8_000_000
# The shell ends at once, so the server is nobody's child; its arguments are never parsed again.
_DETACH: Final = '"$@" >&2 & echo $!'


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of an embedded server."""

    running: bool
    pid: int | None
    version: int | None
    socket: Path
    data_mb: float


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
            if _server(files) is None:
                _prepare(files, owner)
                _start(files, owner)
            _wait_until_ready(files)
            pgdata.private_folder(files.socket, owner)
        return _url(files, owner)


def stop(home: Path) -> bool:
    """Stop the server, ending its clients' connections; tell whether it was running.

    Raises:
        StorageError: it runs on another machine, or belongs to someone else.
        StorageLostError: it does not stop.
    """
    files = Files.below(home)
    if not files.data.exists():
        return False
    with _one_line(home), _locked(files):
        server = _server(files)
        if server is None:
            return False
        for request in (signal.SIGINT, signal.SIGQUIT):  # "fast", then "immediate"
            server.send_signal(request)
            if _ends(server, within_s=_WAIT_S / 2):
                _logger.info("embedded Postgres stopped", extra={"action": "db_stop"})
                return True
    message = f"the embedded Postgres must stop within {_WAIT_S:.0f} s, got process {server.pid}"
    raise StorageLostError(f"{message} still there; see {str(files.log)!r}")


def status(home: Path) -> Status:
    """Return what is known of the server, without starting it.

    Raises:
        StorageError: it runs on another machine, or belongs to someone else.
    """
    files = Files.below(home)
    with _one_line(home):
        server = _server(files)
        return Status(
            running=server is not None,
            pid=None if server is None else server.pid,
            version=pgdata.version_of(files),
            socket=files.socket,
            data_mb=round(_size_bytes(files.data) / 1e6, 1),
        )


def _url(files: Files, owner: Account) -> URL:
    where = {"host": str(files.socket), "port": str(pgdata.PORT), "requirepeer": owner.name}
    return URL.create(
        "postgresql+psycopg2",
        username=pgdata.USER,
        password=pgdata.read_password(files),
        database="postgres",
        query=where,
    )


def _prepare(files: Files, owner: Account) -> None:
    if not owner.is_ours:
        account.let_through(owner, files.root)
    pgdata.initialise(files, owner)
    pgdata.configure(files, owner)
    pgdata.private_folder(files.data, owner)
    pgdata.private_folder(files.socket, owner)
    for lock in (files.pid, files.socket / f".s.PGSQL.{pgdata.PORT}.lock"):
        _clear_stale(lock, files)
    if files.log.exists() and files.log.stat().st_size > _LOG_MAX_BYTES:
        files.log.replace(files.log.with_name("log.1"))


def _start(files: Files, owner: Account) -> None:
    """Launch the server; a few times, where the last one's memory is still being given back."""
    pgdata.write(files.host, socket.gethostname(), mode=0o600)
    for launch in range(_LAUNCHES):
        time.sleep(0.5 * (launch > 0))
        pid = _launch(files, owner)
        while _is_alive(pid) or _server(files) is not None:
            if _is_ready(files):
                _logger.info("embedded Postgres started", extra={"action": "db_start"})
                return
            if _server(files) is not None:
                return  # recovering: the caller waits
            time.sleep(_POLL_S)
    message = f"the embedded Postgres must start, got: {_last_line(files)}; see {str(files.log)!r}"
    raise StorageError(message)


def _launch(files: Files, owner: Account) -> int:
    command = [str(pgdata.binary("postgres")), "-D", str(files.data)]
    command += ["-c", f"config_file={files.root / 'postgresql.conf'}"]
    command += ["-c", f"hba_file={files.root / 'pg_hba.conf'}"]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    log = os.open(files.log, flags, 0o600)
    try:
        shell = subprocess.run(
            ["/bin/sh", "-c", _DETACH, "sh", *command],
            check=True,
            cwd="/",
            env=pgdata.ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            umask=0o077,
            **owner.identity(),
        )
    finally:
        os.close(log)
    return int(shell.stdout)


def _wait_until_ready(files: Files) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not _is_ready(files):
        if _server(files) is None:
            message = f"the embedded Postgres must stay up, got: {_last_line(files)}"
            raise StorageError(f"{message}; see {str(files.log)!r}")
        if time.monotonic() > deadline:
            message = f"the embedded Postgres must be ready within {_WAIT_S:.0f} s, got: still"
            raise StorageLostError(f"{message} recovering; see {str(files.log)!r}, try again")
        time.sleep(_POLL_S)


def _is_ready(files: Files) -> bool:
    try:
        lines = files.pid.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 1 and lines[-1].strip() == "ready"


def _server(files: Files) -> psutil.Process | None:
    """Return the running server, if there is one."""
    if not files.pid.exists():
        return None
    here = socket.gethostname()
    there = files.host.read_text("utf-8") if files.host.exists() else here
    if there != here:
        message = (
            f"the embedded database must be used on the machine that runs it, {there!r}, got "
            f"{here!r}; stop it there (nbtl-search db stop), or, where that machine is lost, remove "
            f"{str(files.pid)!r}; for several machines give a database by --storage"
        )
        raise StorageError(message)
    return _holder(files.pid, files)


def _holder(lock: Path, files: Files) -> psutil.Process | None:
    """Return the server named in a lock file, if it lives and serves our data."""
    try:
        process = psutil.Process(int(lock.read_text("utf-8", errors="replace").split()[0]))
        ours = process.name().startswith("postgres") and Path(process.cwd()) == files.data
    except (FileNotFoundError, IndexError, ValueError, psutil.Error):
        return None
    return process if ours else None


def _clear_stale(lock: Path, files: Files) -> None:
    """Remove a lock file that names no server of ours.

    Postgres does so itself, except where the number belongs to another process now, as after a
    power loss, or where the file was never written out.
    """
    if lock.exists() and _holder(lock, files) is None:
        lock.unlink()


def _is_alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not, and not every init reaps them."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _ends(server: psutil.Process, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while _is_alive(server.pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


@contextlib.contextmanager
def _locked(files: Files) -> Iterator[None]:
    """Hold the lock of this server; the system gives it back whatever becomes of us."""
    deadline = time.monotonic() + 2 * _WAIT_S
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(files.lock, flags, 0o600), "r+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    message = (
                        f"another process has held {str(files.lock)!r} for {2 * _WAIT_S:.0f} s; "
                        "end it, or try again later"
                    )
                    raise StorageLostError(message) from error
                time.sleep(_POLL_S)
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


def _last_line(files: Files) -> str:
    if not files.log.exists():
        return "no log"
    lines = files.log.read_text("utf-8", errors="replace").splitlines()[-20:]
    fatal = [line for line in lines if "FATAL" in line or "PANIC" in line] or lines
    return fatal[-1].strip() if fatal else "an empty log"


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
