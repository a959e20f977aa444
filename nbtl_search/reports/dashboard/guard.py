"""Guard of the dashboard: it only reads, and only for whom it is meant.

The stock dashboard has no login, and its DELETE, tell and Rename work for anyone: Rename kills
running workers, and all three contradict the ledger. So only what a reader needs passes: known
paths, GET and HEAD. A name in `Host` that is not this machine's is refused as well: by it, a
foreign page whose name suddenly means 127.0.0.1 (DNS rebinding) would read the studies.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_READS: Final = ("GET", "HEAD")
_PATHS: Final = re.compile(
    r"""/ | /favicon\.ico | /static/[\w.-]+ | /dashboard(/[\w/.-]*)?
      | /api/(meta | studies(/\d+(/param_importances | /plot/\w+)?)?)/?
      | /csv/\d+ | /learning-curve/\d+\.svg""",
    re.VERBOSE | re.ASCII,
)
_NOTES: Final = re.compile(r"/api/studies/\d+(/\d+)?/note", re.ASCII)
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "nbtl-search",
}
_FRAMES: Final = ";frame-ancestors 'none';base-uri 'none';form-action 'self'"
_MAX_BODY: Final = 2**20


@final
class Guard:
    """A WSGI application that lets the harmless requests through to another."""

    def __init__(
        self, application: "WSGIApplication", *, hosts: Collection[str], writable: bool = False
    ) -> None:
        """Guard an application.

        Args:
            application: the dashboard.
            hosts: names of this machine in a request's Host; addresses always pass.
            writable: let people edit notes. Nothing else: the rest contradicts the ledger.
        """
        self._application = application
        self._hosts = frozenset(host.lower() for host in hosts)
        self._writable = writable

    def __call__(
        self, environ: "WSGIEnvironment", start_response: "StartResponse"
    ) -> Iterable[bytes]:
        """Answer a request, or say in one line why not."""
        is_static = environ.get("PATH_INFO", "").startswith("/static/")
        answer = _protecting(start_response, cached=is_static)
        refusal = self._refusal(environ)
        if refusal is not None:
            return _refuse(environ, answer, *refusal)
        environ.setdefault("HTTP_ACCEPT_ENCODING", "identity")  # the dashboard fails without it
        return self._application(environ, answer)

    def _refusal(self, environ: "WSGIEnvironment") -> tuple[HTTPStatus, str] | None:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        host = environ.get("HTTP_HOST", "")
        if not self._is_ours(host):
            message = (
                f"the Host of a request must be this machine's name, got {host[:100]!r}; "
                "open the dashboard at the address it printed"
            )
            return HTTPStatus.FORBIDDEN, message
        if method in _READS:
            if _PATHS.fullmatch(path):
                return None
            return HTTPStatus.NOT_FOUND, "no such page; the dashboard starts at /dashboard"
        if not (self._writable and method == "PUT" and _NOTES.fullmatch(path)):
            what = "notes only" if self._writable else "nothing"
            message = (
                f"the method must be GET or HEAD, got {method[:20]}; this dashboard changes {what}"
            )
            return HTTPStatus.METHOD_NOT_ALLOWED, message
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return HTTPStatus.FORBIDDEN, "a note must be edited from the dashboard's own page"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return name in self._hosts or _is_address(name)


def names_of(host: str) -> set[str]:
    """Return the names by which a server that listens on `host` may be called.

    One that listens on all interfaces is called by the machine's own names as well.
    """
    names = {"localhost", host.strip("[]").lower()}
    if _is_address(host) and ipaddress.ip_address(host).is_unspecified:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return names


def _is_address(name: str) -> bool:
    """Tell whether this is an IP address, which no foreign page can make its own name."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _protecting(start_response: "StartResponse", *, cached: bool) -> Callable[..., Any]:
    """Return a `start_response` that adds our headers; the page's own content policy stays."""

    def start(
        status: str, headers: list[tuple[str, str]], *arguments: Any
    ) -> Callable[[bytes], object]:
        ours = dict(_HEADERS) if cached else {**_HEADERS, "Cache-Control": "no-store"}
        kept = []
        for name, value in headers:
            if name.lower() == "content-security-policy":
                ours["Content-Security-Policy"] = value + _FRAMES
            elif name.lower() != "server":
                kept.append((name, value))
        return start_response(status, [*kept, *ours.items()], *arguments)

    return start


def _refuse(
    environ: "WSGIEnvironment", answer: Callable[..., Any], status: HTTPStatus, message: str
) -> list[bytes]:
    """Answer with one line, after reading the body: a client still sending would lose it."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if length.isdecimal() and 0 < int(length) <= _MAX_BODY:
        environ["wsgi.input"].read(int(length))
    body = f"{message}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ", ".join(_READS)))
    answer(f"{status.value} {status.phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
