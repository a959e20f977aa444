"""System account that the embedded Postgres runs as: ours, or one of its own when we are root.

Postgres refuses to run as root. `nobody` would not do, other programs run as it; nor would the
account the wheel itself makes, whose servers trust every local user and would hand it out.
"""

import errno
import os
import pwd
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbtl_search.errors import StorageError

ROOT_RUNS_AS: Final = "nbtl-postgres"
_ACL: Final = "system.posix_acl_access"
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY_IN_PARTICULAR: Final = 0xFFFFFFFF
_PASS_THROUGH: Final = 1
_Entries = list[tuple[int, int, int]]


@dataclass(frozen=True, kw_only=True)
class OsUser:
    """A system account, and how to start a process as it."""

    name: str
    uid: int
    gid: int

    @property
    def is_ours(self) -> bool:
        """Tell whether it is the account of this process."""
        return self.uid == os.geteuid()

    def identity(self) -> dict[str, Any]:
        """Return the arguments that make `subprocess` start a process as this account."""
        return {} if self.is_ours else {"user": self.uid, "group": self.gid, "extra_groups": []}


def of_server() -> OsUser:
    """Return the account of the server, made where we are root and it does not exist yet.

    Raises:
        StorageError: our user id has no name, or the account cannot be made.
    """
    if os.geteuid() == 0:
        return _of(_entry_of_root())
    try:
        return _of(pwd.getpwuid(os.geteuid()))
    except KeyError as error:
        message = (
            f"the embedded Postgres needs a user name for user id {os.geteuid()}, and the system "
            "has none; run as a known user, or give a database by --storage"
        )
        raise StorageError(message) from error


def let_through(account: OsUser, path: Path) -> None:
    """Let the account, and nobody else, pass through the folders above `path`.

    Only root ever needs this: its home is closed to the server's account. The right is an access
    control entry (search only), so the folders stay as closed as they were for everyone else.

    Raises:
        StorageError: a folder is closed and the file system has no access control lists.
    """
    for folder in dict.fromkeys((*path.parents, *path.resolve().parents)):
        if folder.stat().st_mode & _PASS_THROUGH:
            continue
        try:
            _grant_search(folder, account.uid)
        except OSError as error:
            message = (
                f"the account {account.name!r} must be able to pass through {str(folder)!r}: "
                f"{error.strerror}; run as an ordinary user, or set NBTL_HOME (and install this "
                "program) where other users may pass"
            )
            raise StorageError(message) from error


def _entry_of_root() -> pwd.struct_passwd:
    command = ["useradd", "--system", "--user-group", "--no-create-home"]
    command += ["--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", ROOT_RUNS_AS]
    problem = ""
    for _ in range(20):  # another process may hold the lock of the password file
        try:
            return pwd.getpwnam(ROOT_RUNS_AS)
        except KeyError:
            problem = _run(command)
        if problem:
            time.sleep(0.1)
    message = (
        f"Postgres does not run as root, and the account {ROOT_RUNS_AS!r} for it cannot be made "
        f"({problem}); run as an ordinary user, or give a database by --storage"
    )
    raise StorageError(message)


def _run(command: list[str]) -> str:
    """Run the command; return what went wrong, in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else " ".join(done.stderr.split())


def _of(entry: pwd.struct_passwd) -> OsUser:
    return OsUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def _grant_search(folder: Path, uid: int) -> None:
    """Add `user:<uid>:--x` to the folder's access control list (Linux, acl(5))."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    replaced = {(_USER, uid), (_MASK, _NOBODY_IN_PARTICULAR)}
    entries = [entry for entry in _acl_of(folder) if entry[::2] not in replaced]
    entries.append((_USER, _PASS_THROUGH, uid))
    mask = 0
    for tag, permissions, _ in entries:
        if tag not in (_USER_OBJ, _OTHER):
            mask |= permissions
    entries.append((_MASK, mask, _NOBODY_IN_PARTICULAR))
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    packed = b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(folder, _ACL, struct.pack("<I", 2) + packed)


def _acl_of(folder: Path) -> _Entries:
    try:
        raw = os.getxattr(folder, _ACL)
    except OSError:  # none yet: the three ordinary entries say the same
        mode = folder.stat().st_mode
        return [
            (_USER_OBJ, mode >> 6 & 7, _NOBODY_IN_PARTICULAR),
            (_GROUP_OBJ, mode >> 3 & 7, _NOBODY_IN_PARTICULAR),
            (_OTHER, mode & 7, _NOBODY_IN_PARTICULAR),
        ]
    return list(struct.iter_unpack("<HHI", raw[4:]))
