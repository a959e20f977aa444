"""Server of the dashboard: Optuna's over a cached storage, for reading, on this machine."""

import logging
import re
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from socketserver import TCPServer, ThreadingMixIn
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import optuna_dashboard

from nbtl_search.errors import NbtlError
from nbtl_search.ledger.database import Storage, check
from nbtl_search.reports.dashboard.guard import Guard, names_of
from nbtl_search.reports.dashboard.pages import AnnotatedStorage, Pages

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

_CURVE: Final = re.compile(r"/learning-curve/(\d{1,10})\.svg", re.ASCII)
_TICK_S: Final = 0.25
_PATIENCE_S: Final = 20.0


def serve(
    storage: Storage,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    writable: bool = False,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM.

    Args:
        storage: of the studies.
        host: address or name to listen on.
        port: to listen on; 0 for any that is free.
        writable: let people edit notes.
        ready: called with the address once it answers.

    Raises:
        NbtlError: it cannot listen there.
        StorageError: the database refuses.
    """
    with (
        warnings.catch_warnings(),
        listening(storage, host=host, port=port, writable=writable) as server,
        _signals() as stop,
    ):
        warnings.simplefilter("ignore", UserWarning)  # Optuna's, at each drawing of few trials
        ready(server.address)
        while not stop:
            server.handle_request()


def page(study_id: int) -> str:
    """Return the path of a study's page, to be added to the dashboard's address."""
    return f"dashboard/studies/{study_id}"


@contextmanager
def listening(
    storage: Storage, *, host: str = "127.0.0.1", port: int = 0, writable: bool = False
) -> "Iterator[Server]":
    """Listen, and keep the figures fresh meanwhile; the block handles the requests.

    Raises:
        NbtlError: it cannot listen there.
        SchemaError: the tables are missing or of another version.
        StorageError: the database refuses.
    """
    check(storage)
    pages, stopped = Pages(storage), threading.Event()
    guarded = Guard(application(storage, pages), hosts=names_of(host), writable=writable)
    refresher = threading.Thread(target=pages.run, args=[stopped], name="figures", daemon=True)
    with _bound(host, port) as server:
        server.set_app(guarded)
        refresher.start()
        try:
            yield server
        finally:
            stopped.set()
            refresher.join(_PATIENCE_S)


def application(storage: Storage, pages: Pages) -> "WSGIApplication":
    """Return the dashboard with our additions, which nothing guards yet."""
    stock = optuna_dashboard.wsgi(AnnotatedStorage(storage, pages))
    stock.install(pages.with_notes)

    def answer(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        with pages.priority.answering():
            asked = _CURVE.fullmatch(environ.get("PATH_INFO", ""))
            if asked is None:
                served: Iterable[bytes] = stock(environ, start_response)
                return served
            svg = pages.curve(int(asked[1]))
        body = b"" if svg is None else svg.encode()
        headers = [("Content-Type", "image/svg+xml"), ("Content-Length", str(len(body)))]
        start_response("404 Not Found" if svg is None else "200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    return answer


class Server(ThreadingMixIn, WSGIServer):
    """A thread per connection, since browsers hold idle ones open.

    The threads are daemons: a reader's poll need not be finished, and a note is one transaction.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64
    timeout = _TICK_S  # of `handle_request`, so that its loop sees a request to stop

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        super().__init__((host, port), _Handler)
        self.socket.settimeout(_TICK_S)  # a connection may be gone before it is accepted

    @property
    def address(self) -> str:
        """The URL of the dashboard."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without asking the name service who we are, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what went wrong with a connection; it is the client's loss."""
        logger.debug("a connection ended badly: %r", sys.exception(), extra={"action": "serve"})


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_S  # of the connection: who sends nothing must not keep a thread

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name there)
        logger.debug(format, *args)

    def get_stderr(self) -> Any:
        return _LogStream()


@final
class _LogStream(TextIOBase):
    """Where the applications write their errors: our log."""

    def write(self, text: str) -> int:
        if text.strip():
            logger.error("%s", text.rstrip(), extra={"action": "request"})
        return len(text)


@contextmanager
def _bound(host: str, port: int) -> Iterator[Server]:
    try:
        server = Server(host, port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        message = (
            f"the dashboard must be able to listen on {host!r}, port {port}, got: {reason}; "
            "choose another --host or --port (0 = any that is free)"
        )
        raise NbtlError(message) from error
    with server:
        yield server


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list while the block runs; the old handlers come back."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
