"""Network address of the embedded Postgres, for workers of other machines: chosen, kept, undone.

The choice is a small file beside the server's settings, so that whoever starts the server next
serves it again. The shipped Postgres has no TLS: passwords travel hashed (scram), rows do not.
"""

import ipaddress
import json
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from nbtl_search.errors import StorageError
from nbtl_search.files.atomic import write_durably
from nbtl_search.postgres.data_folder import (
    USER,
    Files,
    read_password,
)

PORT: Final = 5433
_ANY: Final = ("0.0.0.0", "::", "*")  # noqa: S104  (refused unless said twice)
_SAMES: Final = ("samehost", "samenet")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the server listens, and to whom it answers."""

    host: str
    port: int = PORT
    allow: str = "samenet"
    """A network in CIDR notation, or samehost, samenet."""

    @property
    def settings(self) -> str:
        """The lines of postgresql.conf; the port is also a part of the socket's name."""
        return f"listen_addresses = '{self.host}'\nport = {self.port}\n"

    @property
    def access(self) -> str:
        """The line of pg_hba.conf."""
        return f"host all {USER} {self.allow} scram-sha-256\n"


def choose(host: str, *, port: int, allow: str | None, any_interface: bool) -> Serving:
    """Return what is asked for, checked.

    Raises:
        StorageError: no address of this machine, every one of them unasked, or no network.
    """
    if host in _ANY and not any_interface:
        message = (
            f"--host must name one address of this machine, got {host!r}, which is all of them; "
            "name one, or say --any-interface as well"
        )
        raise StorageError(message)
    if allow is None:
        allow = "samehost" if _is_loopback(host) else "samenet"
    return Serving(host=host, port=port, allow=_network(allow))


def check_free(serving: Serving) -> None:
    """Make sure that the server can listen there.

    Raises:
        StorageError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.getaddrinfo(serving.host, serving.port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((serving.host, serving.port))
    except OSError as error:
        message = (
            f"the database must be able to listen on {serving.host!r}, port {serving.port}, got: "
            f"{error.strerror or error}; give an address of this machine, or another --port"
        )
        raise StorageError(message) from error


def keep(files: Files, serving: Serving) -> None:
    """Note the choice, and write the address with its password for workers, readable by us only."""
    write_durably(_note(files), json.dumps(asdict(serving)).encode(), mode=0o600)
    url = URL.create(
        "postgresql",
        username=USER,
        password=read_password(files),
        host=serving.host,
        port=serving.port,
        database="postgres",
    )
    text = url.render_as_string(hide_password=False) + "\n"
    write_durably(address(files), text.encode(), mode=0o600)


def forget(files: Files) -> bool:
    """Undo `keep`; return whether there was anything to undo."""
    was = _note(files).exists()
    for path in (address(files), _note(files)):
        path.unlink(missing_ok=True)
    return was


def kept(files: Files) -> Serving | None:
    """Return the choice that was noted.

    Raises:
        StorageError: its file is damaged.
    """
    try:
        return Serving(**json.loads(_note(files).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        message = (
            f"{str(_note(files))!r} must be as `db serve` wrote it, got: {error}; run "
            "nbtl-search db serve again, or with --off"
        )
        raise StorageError(message) from error


def address(files: Files) -> Path:
    """Return the file that holds the URL for other machines."""
    return files.root / "storage_url"


def _note(files: Files) -> Path:
    return files.root / "serve.json"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _network(allow: str) -> str:
    if allow in _SAMES:
        return allow
    try:
        return str(ipaddress.ip_network(allow))
    except ValueError as error:
        message = (
            f"--allow must be a network such as 10.0.0.0/16, samehost or samenet, got {allow!r} "
            f"({error})"
        )
        raise StorageError(message) from error
