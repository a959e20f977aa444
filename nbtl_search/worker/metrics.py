"""Metrics of a worker, for Prometheus and for health probes, on loopback only.

Everything is counted always, and served only where a port was given. The registry is the worker's
own: nothing global is touched.
"""

import json
import logging
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, final
from wsgiref.simple_server import WSGIRequestHandler, make_server

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from nbtl_search.errors import NbtlError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_MB: Final = 2**20
_EPOCH_S: Final = (1, 5, 15, 60, 300, 900, 3600, 14400)


@final
class Metrics:
    """The counts of one worker."""

    def __init__(self, *, study: str, worker: str) -> None:
        self.registry = CollectorRegistry()
        self._ticked_at = time.monotonic()
        self.trials = Counter(
            "nbtl_trials", "Attempts at trials that ended here, by how", ["end"],
            registry=self.registry,
        )  # fmt: skip
        self.epochs = Histogram(
            "nbtl_epoch_seconds", "Seconds of the epochs trained here", buckets=_EPOCH_S,
            registry=self.registry,
        )  # fmt: skip
        self.images = Counter("nbtl_images", "Training images seen here", registry=self.registry)
        self.in_progress = Gauge(
            "nbtl_trials_in_progress", "1 while a trial is trained", registry=self.registry
        )
        self.heartbeat = Gauge(
            "nbtl_heartbeat_timestamp_seconds", "When the database last took a heartbeat",
            registry=self.registry,
        )  # fmt: skip
        self.database_up = Gauge(
            "nbtl_database_up", "1 while the database answers", registry=self.registry
        )
        self.trainer_restarts = Counter(
            "nbtl_trainer_restarts", "Trainers that had to be replaced", registry=self.registry
        )
        self.trainer_rss = Gauge(
            "nbtl_trainer_rss_bytes", "Memory of the trainer after its last trial",
            registry=self.registry,
        )  # fmt: skip
        rss = Gauge("nbtl_supervisor_rss_bytes", "Memory of the supervisor", registry=self.registry)
        rss.set_function(lambda: psutil.Process().memory_info().rss)
        about = Info("nbtl_worker", "Which worker this is", registry=self.registry)
        about.info({"study": study, "worker": worker})

    def tick(self) -> None:
        """Note that the worker's loop goes round: it lives, whatever it waits for."""
        self._ticked_at = time.monotonic()

    def answered(self, *, well: bool) -> None:
        """Note whether the database took a heartbeat."""
        self.database_up.set(1 if well else 0)
        if well:
            self.heartbeat.set_to_current_time()

    def epoch(self, *, seconds: float, n_images: int) -> None:
        """Count an epoch."""
        self.epochs.observe(seconds)
        self.images.inc(n_images)

    def trainer(self, rss_mb: float | None) -> None:
        """Note the trainer's memory."""
        if rss_mb is not None:
            self.trainer_rss.set(rss_mb * _MB)

    @property
    def still_s(self) -> float:
        """How long the worker's loop has not gone round."""
        return time.monotonic() - self._ticked_at


@final
class MetricsServer:
    """`/metrics` and `/healthz` of a worker; a context that closes the port.

    Healthy means that the supervisor's loop turns. A worker that waits for a lost database is
    healthy: to kill it would help nobody.
    """

    def __init__(self, metrics: Metrics, *, port: int, stalled_after_s: float) -> None:
        """Listen.

        Raises:
            NbtlError: the port is taken.
        """
        try:
            # With a thread for each request: a scraper that hangs must not keep a health probe
            # waiting, for which the worker would be killed.
            self._server = make_server(
                _HOST,
                port,
                _application(metrics, stalled_after_s),
                server_class=ThreadingWSGIServer,
                handler_class=_QuietHandler,
            )
        except OSError as error:
            message = (
                f"--metrics-port must be free on {_HOST}, got {port}: {error.strerror}; give "
                "another, or 0 for any"
            )
            raise NbtlError(message) from error
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="metrics", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        logger.info(
            "metrics at http://%s:%d/metrics", _HOST, self.port, extra={"action": "metrics"}
        )
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing: a probe every few seconds is no news."""


def _application(metrics: Metrics, stalled_after_s: float) -> "WSGIApplication":
    def health(_environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        still_s = metrics.still_s
        well = still_s < stalled_after_s
        status = "200 OK" if well else "503 Service Unavailable"
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps({"healthy": well, "still_s": round(still_s, 1)}).encode()]

    # The library's application answers on every path, so that paths are told apart here.
    pages = {"/metrics": make_wsgi_app(metrics.registry), "/healthz": health}

    def application(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        return pages.get(environ["PATH_INFO"], _not_found)(environ, start_response)

    return application


def _not_found(_environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"there are /metrics and /healthz\n"]
