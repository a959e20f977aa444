"""The process of the embedded Postgres: launch it detached, find it, see that it answers."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

import psutil

from nbtl_search.errors import StorageError, StorageLostError
from nbtl_search.study import pgdata
from nbtl_search.study.account import Account
from nbtl_search.study.logfile import rotate
from nbtl_search.study.pgdata import Files

WAIT_S: Final = 60.0
POLL_S: Final = 0.02
_LAUNCHES: Final = 5
# The shell ends at once, so the server is nobody's child; its arguments are never parsed again.
_DETACH: Final = '"$@" >&2 & echo $!'


def running(files: Files) -> psutil.Process | None:
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


def start(files: Files, owner: Account) -> None:
    """Launch the server and wait until it answers.

    Raises:
        StorageError: it ends before it is ready; the message has the last line of its log.
        StorageLostError: it is not ready in time.
    """
    rotate(files.log)
    pgdata.write(files.host, socket.gethostname(), mode=0o600)
    # More than once: processes of a killed server may hold its memory for another moment.
    for launch in range(_LAUNCHES):
        time.sleep(0.5 * (launch > 0))
        for lock in (files.pid, *files.socket.glob(".s.PGSQL.*.lock")):
            _clear_stale(lock, files)
        if becomes_ready(files, _launch(files, owner)):
            return
    message = f"the embedded Postgres must start, got: {_last_line(files)}; see {str(files.log)!r}"
    raise StorageError(message)


def becomes_ready(files: Files, pid: int) -> bool:
    """Wait until the server answers; tell if it does, or is gone.

    It need not be the process `pid`: whoever started before us may have been killed in between.

    Raises:
        StorageLostError: neither within a minute.
    """
    deadline = time.monotonic() + WAIT_S
    while True:
        server = running(files)
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


def end(files: Files, server: psutil.Process) -> None:
    """End the server and its clients' connections.

    Raises:
        StorageLostError: it does not end.
    """
    for request in (signal.SIGINT, signal.SIGQUIT):  # "fast", then "immediate"
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


def _launch(files: Files, owner: Account) -> int:
    """Start the server as nobody's child, in a session of its own, with no file of ours."""
    command = [str(pgdata.binary("postgres")), "-D", str(files.data)]
    command += ["-c", f"config_file={files.root / 'postgresql.conf'}"]
    command += ["-c", f"hba_file={files.root / 'pg_hba.conf'}"]
    log = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
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


def _answers(files: Files) -> bool:
    try:
        lines = files.pid.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False
    if not lines or lines[-1].strip() != "ready":
        return False
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(os.fsencode(files.socket / f".s.PGSQL.{pgdata.PORT}"))
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
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
