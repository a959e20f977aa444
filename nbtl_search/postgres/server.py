"""Server process of the embedded Postgres: started, found, revived, stopped.

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
from nbtl_search.files.atomic import write_durably
from nbtl_search.files.rotation import rotate
from nbtl_search.postgres import address, data_folder, os_user
from nbtl_search.postgres.address import Serving
from nbtl_search.postgres.data_folder import Files
from nbtl_search.postgres.os_user import OsUser

logger = logging.getLogger(__name__)

WAIT_S: Final = 60.0
POLL_S: Final = 0.02
_LAUNCHES: Final = 7
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
        files, owner = Files.below(home), os_user.of_server()
        data_folder.private_folder(files.root, owner, shared=not owner.is_ours)
        with _locked(files):
            # A server that runs may still recover, or just end: it counts when it answers. If it
            # ends while we look, we start another, and nobody else can: we hold the lock.
            server = _running(files)
            if server is None or not _becomes_ready(files, server.pid):
                _prepare(files, owner)
                _keep_the_sockets_name(files)
                _launch_until_ready(files, owner)
                logger.info("embedded Postgres started", extra={"action": "db_start"})
            data_folder.private_folder(files.socket, owner)
        return _url(files, owner)


def revive(home: Path) -> None:
    """Start the server again if it died; one that was stopped on purpose stays so.

    A server that stops removes its pid file, one that is killed leaves it.

    Raises:
        StorageError: it cannot be started.
        StorageLostError: it is not ready after a minute.
    """
    with _one_line(home):
        # Looked at without the lock, so it may be wrong by the next line: then `start` finds a
        # server that runs. Asking for the lock at each lost answer would make workers queue.
        files = Files.below(home)
        died = files.pid.exists() and _running(files) is None
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
            server = _running(files)
            if server is None:
                return False
            _end(files, server)
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
        before = address.kept(files)
        if wanted != before:
            if wanted is not None and _endpoint(wanted) != _endpoint(before):
                address.check_free(wanted)
            # The choice is written before the restart, as `start` reads it, also where another
            # process starts the server between our stop and our start.
            _set(files, wanted)
            stop(home)
            try:
                start(home)
            except StorageError:  # nobody shall be without a database because of a wrong address
                _set(files, before)
                start(home)
                raise
            logger.info("embedded Postgres serves %s", wanted, extra={"action": "db_serve"})
        return served(home)


def served(home: Path) -> Path | None:
    """Return the file with the URL for other machines, while the server listens for them."""
    files = Files.below(home)
    return address.address(files) if address.kept(files) is not None else None


def status(home: Path) -> Status:
    """Return what is known of the server, without starting it.

    Raises:
        StorageError: it runs on another machine, or belongs to someone else.
    """
    with _one_line(home):
        files = Files.below(home)
        server = _running(files)
        listens = address.kept(files)
        return Status(
            running=server is not None,
            pid=None if server is None else server.pid,
            version=data_folder.version_of(files),
            socket=files.socket,
            data_mb=round(_size_bytes(files.data) / 1e6, 1),
            serves=None if listens is None else _in_short(listens),
        )


def _prepare(files: Files, owner: OsUser) -> None:
    if not owner.is_ours:
        os_user.let_through(owner, files.root)
    data_folder.initialise(files, owner)
    listens = address.kept(files)
    if listens is None:
        data_folder.configure(files, owner)
    else:
        data_folder.configure(files, owner, more=listens.settings, access=listens.access)
    data_folder.private_folder(files.data, owner)
    data_folder.private_folder(files.socket, owner)


def _url(files: Files, owner: OsUser) -> URL:
    # requirepeer: the password is only said to a server that runs as its own user, and not to one
    # that somebody else has put at this path.
    where = {"host": str(files.socket), "port": str(data_folder.PORT), "requirepeer": owner.name}
    return URL.create(
        "postgresql+psycopg2",
        username=data_folder.USER,
        password=data_folder.read_password(files),
        database="postgres",
        query=where,
    )


def _keep_the_sockets_name(files: Files) -> None:
    """Let the socket be found under its usual name where the server's port is another."""
    listens = address.kept(files)
    usual = files.socket / f".s.PGSQL.{data_folder.PORT}"
    if listens is not None and listens.port != data_folder.PORT:
        usual.unlink(missing_ok=True)
        usual.symlink_to(f".s.PGSQL.{listens.port}")


def _set(files: Files, wanted: Serving | None) -> None:
    if wanted is None:
        address.forget(files)
    else:
        address.keep(files, wanted)


def _endpoint(chosen: Serving | None) -> tuple[str, int] | None:
    return None if chosen is None else (chosen.host, chosen.port)


def _in_short(listens: Serving) -> str:
    return f"{listens.host}:{listens.port} to {listens.allow}"


def _size_bytes(folder: Path) -> int:
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the server makes and removes files
                size += Path(place, name).lstat().st_size
    return size


@contextlib.contextmanager
def _locked(files: Files) -> Iterator[None]:
    """Hold the lock of this server; the system gives it back whatever becomes of us.

    Asked for again and again rather than waited for: a signal must get through, and a holder that
    hangs must become an error that names it. The file stays: one that is removed while another
    process waits for it would let two in.
    """
    deadline = time.monotonic() + 2 * WAIT_S
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
                        f"{2 * WAIT_S:.0f} s; end it, or try again later"
                    )
                    raise StorageLostError(message) from error
                time.sleep(POLL_S)
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


def _running(files: Files) -> psutil.Process | None:
    """Return the server that runs on these files, if there is one.

    Raises:
        StorageError: it was started on another machine, and not stopped there.
    """
    if not files.pid.exists():
        return None
    here = socket.gethostname()
    there = files.host.read_text("utf-8") if files.host.exists() else here
    if there != here:
        message = (
            f"the embedded database must be used on the machine that runs it, {there!r}, got "
            f"{here!r}; stop it there (nbtl-search db stop), or, where that machine is lost, "
            f"remove {str(files.pid)!r}; for several machines give a database by --storage"
        )
        raise StorageError(message)
    return _holder(files.pid, files)


def _launch_until_ready(files: Files, owner: OsUser) -> None:
    """Launch the server and wait until it answers.

    Raises:
        StorageError: it ends before it is ready; the message has the last line of its log.
        StorageLostError: it is not ready in time.
    """
    rotate(files.log)
    # Before the launch: a home on a shared disk must say where its server is before it has one.
    write_durably(files.host, socket.gethostname().encode(), mode=0o600)
    # More than once: processes of a killed server may hold its memory for another moment.
    for launch in range(_LAUNCHES):
        time.sleep(0.5 * launch)
        for lock in (files.pid, *files.socket.glob(".s.PGSQL.*.lock")):
            _clear_stale(lock, files)
        if _becomes_ready(files, _launch(files, owner)):
            return
    message = f"the embedded Postgres must start, got: {_last_line(files)}; see {str(files.log)!r}"
    raise StorageError(message)


def _becomes_ready(files: Files, pid: int) -> bool:
    """Wait until the server answers; tell if it does, or is gone.

    It need not be the process `pid`: whoever started before us may have been killed in between.

    Raises:
        StorageLostError: neither within a minute.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        server = _running(files)
        if server is not None and _answers(files):
            return True
        if server is None and not _is_alive(pid):
            return False
        if time.monotonic() > deadline:
            message = (
                f"the embedded Postgres must be ready within {WAIT_S:.0f} s, got: still "
                f"recovering; see {str(files.log)!r}, try again"
            )
            raise StorageLostError(message)
        time.sleep(POLL_S)


def _end(files: Files, server: psutil.Process) -> None:
    """End the server and its clients' connections.

    Raises:
        StorageLostError: it does not end.
    """
    # "Fast" rolls clients back and checkpoints. "Immediate" does not, and the next start recovers
    # from the log: slower, and as safe. SIGKILL would leave its children with the shared memory.
    for request in (signal.SIGINT, signal.SIGQUIT):
        server.send_signal(request)
        deadline = time.monotonic() + WAIT_S / 2
        while _is_alive(server.pid) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if not _is_alive(server.pid):
            return
    message = (
        f"the embedded Postgres must stop within {WAIT_S:.0f} s, got process {server.pid} still "
        f"there; see {str(files.log)!r}"
    )
    raise StorageLostError(message)


def _launch(files: Files, owner: OsUser) -> int:
    """Start the server as nobody's child, in a session of its own, with no file of ours."""
    command = [str(data_folder.binary("postgres")), "-D", str(files.data)]
    command += ["-c", f"config_file={files.root / 'postgresql.conf'}"]
    command += ["-c", f"hba_file={files.root / 'pg_hba.conf'}"]
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    try:
        shell = subprocess.run(
            ["/bin/sh", "-c", _DETACH, "sh", *command],
            check=True,
            cwd="/",
            env=data_folder.ENVIRONMENT,
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


def _answers(files: Files) -> bool:
    try:
        lines = files.pid.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    if not lines or lines[-1].strip() != "ready":
        return False
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(files.socket / f".s.PGSQL.{data_folder.PORT}"))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # not yet, or busy
            return False
        return True


def _holder(lock: Path, files: Files) -> psutil.Process | None:
    """Return the server named in a lock file, if it lives and serves our data."""
    pid = _pid_in(lock)
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        ours = process.name().startswith("postgres") and Path(process.cwd()) == files.data
    except psutil.Error:
        return None
    return process if ours else None


def _clear_stale(lock: Path, files: Files) -> None:
    """Remove a lock file that only seems to name a server.

    Postgres takes over the lock of a process that is gone. It does not where the number is another
    process's now, as after a power loss, or where the file was never written out.
    """
    pid = _pid_in(lock)
    if (pid is None or psutil.pid_exists(pid)) and _holder(lock, files) is None:
        lock.unlink(missing_ok=True)


def _pid_in(lock: Path) -> int | None:
    try:
        pid = int(lock.read_text("utf-8", errors="replace").split()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return pid if pid > 0 else None


def _is_alive(pid: int) -> bool:
    """Tell whether the process runs; a zombie does not, and not every init reaps them."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _last_line(files: Files) -> str:
    if not files.log.exists():
        return "no log"
    lines = files.log.read_text("utf-8", errors="replace").splitlines()[-20:]
    fatal = [line for line in lines if "FATAL" in line or "PANIC" in line] or lines
    return fatal[-1].strip() if fatal else "an empty log"
