"""What a worker says of itself on loopback agrees with the ledger."""

import socket
import urllib.error
import urllib.request

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from nbtl_search.worker.metrics import Metrics, MetricsServer
from tests.acceptance.conftest import FAST, free_port, wait_until


def scrape(port):
    """Return the samples by name (and end, for attempts), or None while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            families = text_string_to_metric_families(answer.read().decode())
    except OSError:
        return None
    return {
        (sample.name, sample.labels.get("end", "")): sample.value
        for family in families
        for sample in family.samples
    }


def connections(program):
    """The names of the connections of others than this test's."""
    opened = program.open()
    with opened.engine.connect() as connection:
        query = (
            "SELECT application_name FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        found = list(connection.execute(text(query)).scalars())
    opened.close()
    return found


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_counts_are_those_of_the_ledger(program, tiny):
    program.ok(*tiny, "--epochs", 6, "--trials", 3)
    port = free_port()
    worker = program.start("worker", "tiny", "--metrics-port", port, *FAST)
    wait_until(lambda: (scrape(port) or {}).get(("nbtl_epoch_seconds_count", ""), 0) >= 1)
    (process,) = program.processes("worker")
    assert set(connections(program)) == {f"nbtl-worker {socket.gethostname()}-{process.pid}"}
    most = max(len(connections(program)) for _ in range(20))
    assert 1 <= most <= 3
    listening = {c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        assert answer.status == 200
    last: dict[tuple[str, str], float] = {}
    while worker.poll() is None:
        last = scrape(port) or last
    _, complaints = worker.communicate(timeout=20)
    assert worker.returncode == 0, complaints
    report = program.status("tiny")
    assert last["nbtl_database_up", ""] == 1
    assert last["nbtl_supervisor_rss_bytes", ""] > 10e6
    # The last look was up to one trial before the end.
    assert report["epochs_spent"] - 6 <= last["nbtl_epoch_seconds_count", ""]
    assert last["nbtl_epoch_seconds_count", ""] <= report["epochs_spent"]
    # Three trials begin here and end, or pause; one of them may be promoted.
    ended = sum(last.get(("nbtl_trials_total", end), 0) for end in ("complete", "paused"))
    assert 2 <= ended <= 4


def test_a_loop_that_stands_still_is_not_healthy():
    metrics = Metrics(study="x", worker="w")
    with MetricsServer(metrics, port=0, stalled_after_s=60.0) as server:
        url = f"http://127.0.0.1:{server.port}/healthz"
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
        metrics._ticked_at -= 61
        with pytest.raises(urllib.error.HTTPError, match="503") as caught:
            urllib.request.urlopen(url, timeout=5)
        caught.value.close()
        metrics.tick()
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
    assert not [
        c for c in psutil.Process().net_connections("tcp")
        if c.status == "LISTEN" and c.laddr.port == server.port
    ]  # fmt: skip


def test_metrics_are_in_the_format_of_prometheus_and_nothing_else_is_served():
    metrics = Metrics(study="x", worker="w")
    metrics.epoch(seconds=2.0, n_images=32)
    with MetricsServer(metrics, port=0, stalled_after_s=60.0) as server:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
        found = scrape(server.port)
        assert found is not None
        assert found["nbtl_images_total", ""] == 32
        for path in ("/", "/metrics/", "/healthz/x", "/favicon.ico"):
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5)
            caught.value.close()
