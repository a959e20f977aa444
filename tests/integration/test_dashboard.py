"""The dashboard over a study in a real Postgres, asked over real HTTP."""

import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import NullPool, create_engine, event, text

from nbtl_search.errors import NbtlError, SchemaError, StorageLostError
from nbtl_search.ledger import database
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.reports.dashboard import pages
from nbtl_search.reports.dashboard import server as dashboard
from nbtl_search.reports.dashboard.pages import Pages, Priority
from nbtl_search.reports.dashboard.server import Server, listening, page
from nbtl_search.reports.terminal.status import status_of
from nbtl_search.study import store
from tests.plausible_study import fill, make_spec

FIGURES = [
    "nbtl-dials",
    "nbtl-history",
    "nbtl-l2sp",
    "nbtl-learning-curves",
    "nbtl-low-layers",
    "nbtl-non-binary",
    "nbtl-optimal",
    "nbtl-rate",
]


@contextlib.contextmanager
def cloned(server_url, source):
    """A database that starts as a copy of another."""
    name = f"nbtl_test_{secrets.token_hex(6)}"
    engine = create_engine(server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {source}"))
        try:
            yield server_url.set(database=name)
        finally:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@pytest.fixture(scope="module")
def searched(server_url, template):
    """The name of a database with a study: six trials that ended, one that runs."""
    with cloned(server_url, template) as url:
        opened = database.connect(url.render_as_string(hide_password=False), home=None)
        made = store.create(opened, make_spec(n_trials=8, n_epochs=8))
        fill(made, n_trials=7, running=1, failed=1)
        opened.close()
        yield url.database


@pytest.fixture
def database_url(server_url, searched):
    with cloned(server_url, searched) as url:
        yield url.render_as_string(hide_password=False)


@pytest.fixture
def study(db):
    return store.open_study(db, "dtd10")


@pytest.fixture
def reader(database_url):
    """The dashboard's own connection."""
    opened = database.connect(database_url, home=None, application="nbtl-dashboard")
    yield opened
    opened.close()


@pytest.fixture
def site(reader):
    """The port of a running dashboard."""
    with running(reader) as server:
        yield server.server_port


class running:  # noqa: N801  (a context manager in the manner of a function)
    def __init__(self, opened, **options):
        self._context = listening(opened, **options)
        self._stopped = threading.Event()

    def __enter__(self) -> Server:
        server = self._context.__enter__()

        def loop():
            while not self._stopped.is_set():
                server.handle_request()

        self._thread = threading.Thread(target=loop)
        self._thread.start()
        return server

    def __exit__(self, *error):
        self._stopped.set()
        self._thread.join()
        self._context.__exit__(*error)


def ask(port, method, path, *, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read().decode(errors="replace")
    finally:
        connection.close()


def detail(port, study):
    """Return the study as the page polls it, once the figures are there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        status, _, body = ask(port, "GET", f"/api/studies/{study.id}")
        assert status == 200
        found = json.loads(body)
        if found["plotly_graph_objects"]:
            return found
        time.sleep(0.05)
    pytest.fail("no figures within 30 s")


def test_reading_works(site, study):
    status, headers, body = ask(site, "GET", "/")
    assert (status, headers["Location"]) == (302, f"http://127.0.0.1:{site}/dashboard")
    for path in ("/dashboard", f"/{page(study.id)}", "/static/bundle.js", "/favicon.ico"):
        assert ask(site, "GET", path)[0] == 200, path
        assert ask(site, "HEAD", path)[::2] == (200, ""), path
    status, _, body = ask(site, "GET", "/api/studies")
    assert [study["study_name"] for study in json.loads(body)["study_summaries"]] == ["dtd10"]
    for path in (f"/api/studies/{study.id}/plot/timeline", f"/csv/{study.id}"):
        assert ask(site, "GET", path)[0] == 200, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_writing_is_refused_and_the_study_is_still_there(site, study, method):
    body = json.dumps({"study_name": "other", "state": "FAIL", "version": 2, "body": "x"})
    trial_id = study.optuna.trials[0]._trial_id
    before = study.optuna.trials
    for path in (
        f"/api/studies/{study.id}",
        f"/api/studies/{study.id}/rename",
        f"/api/studies/{study.id}/note",
        f"/api/trials/{trial_id}/tell",
        f"/api/trials/{trial_id}/user-attrs",
        "/api/studies",
    ):
        json_type = {"Content-Type": "application/json"}
        status, _, answer = ask(site, method, path, body=body, **json_type)
        assert status == 405, path
        assert answer == (
            f"the method must be GET or HEAD, got {method}; this dashboard changes nothing\n"
        )
    assert [summary.name for summary in store.names(study.storage)] == ["dtd10"]
    assert study.optuna.trials == before


def test_a_foreign_name_is_refused(site):
    assert ask(site, "GET", "/api/studies", Host="evil.example")[0] == 403
    assert ask(site, "GET", "/api/studies", Host=f"localhost:{site}")[0] == 200


def test_figures_notes_and_the_verdict_are_on_the_pages(site, study):
    found = detail(site, study)
    assert sorted(figure["id"] for figure in found["plotly_graph_objects"]) == FIGURES
    for figure in found["plotly_graph_objects"]:
        assert json.loads(figure["graph_object"])["data"], figure["id"]
    assert "dtd10" in found["note"]["body"]
    report = status_of(study)
    assert report.best is not None
    attributes = {row["key"]: row["value"] for row in found["user_attrs"]}
    assert attributes["best"].startswith(f"{report.best['value']:.2f} %")
    assert store.SPEC not in attributes
    for trial in found["trials"]:
        keys = {row["key"] for row in trial["user_attrs"]}
        assert store.DIALS not in keys
        if trial["state"] != "Waiting":
            picture = re.search(r"/learning-curve/\d+\.svg", trial["note"]["body"])
            assert picture is not None
            status, headers, svg = ask(site, "GET", picture[0])
            assert (status, headers["Content-Type"]) == (200, "image/svg+xml")
            assert "<polyline" in svg
    diverged = next(t for t in found["trials"] if "diverged" in t["note"]["body"])
    assert r"the loss is \*inf\*" in diverged["note"]["body"]
    assert ask(site, "GET", "/learning-curve/999999.svg")[0] == 404


def test_the_dashboard_writes_nothing(study, reader):
    statements = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    engines = [reader.engine, reader.optuna._backend.engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    with running(reader) as server:
        detail(server.server_port, study)
    assert statements
    writing = [s for s in statements if not re.match(r"\s*(SELECT|SHOW|WITH)\b", s, re.IGNORECASE)]
    assert writing == []


def test_a_poll_does_not_read_finished_trials_again(site, study, reader):
    detail(site, study)
    rows = []

    def note(_connection, cursor, statement, *_):
        if "trial_intermediate_values" in statement or "trial_params" in statement:
            rows.append(cursor.rowcount)

    event.listen(reader.optuna._backend.engine, "after_cursor_execute", note)
    time.sleep(2.1)  # the dashboard itself answers younger polls from its own memory
    detail(site, study)
    unfinished = study.optuna.get_trials(states=[TrialState.RUNNING])  # one runs, some are paused
    most = max(
        sum(len(trial.params) for trial in unfinished),
        sum(len(trial.intermediate_values) for trial in unfinished),
    )
    assert rows
    assert max(rows) <= most


def test_refresh_redraws_what_has_changed_and_only_that(study, reader):
    drawn = Pages(reader)
    other = store.create(study.storage, make_spec(name="other", n_epochs=8))
    assert sorted(drawn.refresh()) == ["dtd10", "other"]
    assert drawn.refresh() == []
    fill(study, n_trials=1)
    assert drawn.refresh() == ["dtd10"]
    store.delete(study.storage, other.name)
    assert drawn.refresh() == []
    assert drawn.attributes(other.id) == {}


def test_pages_go_before_each_figure(reader, study, monkeypatch):
    turns: list[Any] = []
    answers: list[Any] = []
    way, answering = Priority.way, Priority.answering

    def counted_way(self, *, longest_s):
        turns_left = way(self, longest_s=longest_s)

        def give_way():
            turns.append(longest_s)
            turns_left()

        return give_way

    def counted_answering(self):
        answers.append(self)
        return answering(self)

    monkeypatch.setattr(Priority, "way", counted_way)
    monkeypatch.setattr(Priority, "answering", counted_answering)
    Pages(reader).refresh()
    assert len(turns) == 1 + len(FIGURES)
    assert answers == []
    with running(reader) as server:
        for path in (f"/api/studies/{study.id}", "/learning-curve/1.svg"):
            before = len(answers)
            ask(server.server_port, "GET", path)
            assert len(answers) == before + 1


def test_who_stops_does_not_wait_for_the_figures_of_all_studies(reader):
    stopped = threading.Event()
    stopped.set()
    drawn = Pages(reader)
    assert drawn.refresh(stopped) == []
    assert drawn.refresh() == ["dtd10"], "nothing was drawn before"


def test_a_persons_note_goes_before_ours(study, reader):
    with running(reader, writable=True) as server:
        port = server.server_port

        def notes():
            return [trial["note"] for trial in detail(port, study)["trials"]]

        def write(version, body, **headers):
            note = json.dumps({"version": version, "body": body})
            given = {"Content-Type": "application/json"} | headers
            return ask(port, "PUT", path, body=note, **given)[0]

        first = detail(port, study)["trials"][0]
        path = f"/api/studies/{study.id}/{first['trial_id']}/note"
        others = notes()[1:]
        assert first["note"]["version"] == 0
        assert "/learning-curve/" in first["note"]["body"]
        assert write(1, "look at this") == 204
        assert write(2, "evil", Origin="http://evil.example") == 403
        assert ask(port, "DELETE", f"/api/studies/{study.id}")[0] == 405
        assert notes() == [{"version": 1, "body": "look at this"}, *others]
        assert write(2, "") == 204
        assert notes() == [{"version": 2, "body": ""}, *others]


def test_a_failed_refresh_is_logged_and_tried_again(study, reader, monkeypatch, caplog):
    monkeypatch.setattr(pages, "REFRESH_S", 0.01)
    away = "the database is away"
    drawn, stopped = Pages(reader), threading.Event()
    whole, n_calls = drawn._stamps, []

    def lost():
        n_calls.append(1)
        if len(n_calls) == 1:
            raise StorageLostError(away)
        if len(n_calls) == 2:
            raise ZeroDivisionError
        if len(n_calls) == 4:
            stopped.set()
        return whole()

    monkeypatch.setattr(drawn, "_stamps", lost)
    drawn.run(stopped)
    assert len(n_calls) == 4
    assert away in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert drawn.attributes(study.id)


def test_requests_come_back_after_the_database_did(site, study):
    detail(site, study)
    kill = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
        "AND application_name = 'nbtl-dashboard'"
    )
    with study.storage.engine.connect() as connection:
        assert connection.execute(kill).rowcount > 0
    assert ask(site, "GET", "/api/studies")[0] == 200
    assert detail(site, study)["name"] == "dtd10"


def test_a_taken_port_is_one_line(reader):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(NbtlError, match=rf"listen on '127\.0\.0\.1', port {port}.*--port"):
            dashboard.serve(reader, port=port)
    with pytest.raises(NbtlError, match="listen on"), listening(reader, port=70_000):
        pass
    with (
        pytest.raises(NbtlError, match="listen on"),
        listening(reader, host="no.such.host.invalid"),
    ):
        pass


def test_missing_tables_are_one_line(empty_database_url):
    opened = database.connect(empty_database_url, home=None)
    with pytest.raises(SchemaError, match="db upgrade"), listening(opened):
        pass
    opened.close()


SERVE = """
import sys
from nbtl_search.reports.dashboard.server import serve
from nbtl_search.ledger.database import connect
opened = connect(sys.stdin.read(), home=None)
serve(opened, port=0, ready=lambda address: print(address, flush=True))
print("ended", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_quickly_also_with_connections_open(database_url, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(database_url)
        process.stdin.close()
        port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        assert ask(port, "GET", "/api/studies")[0] == 200
        with socket.create_connection(("127.0.0.1", port)):
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(10) == 0
            assert time.monotonic() - began < 15
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_search_never_loads_what_only_the_dashboard_needs():
    code = (
        "import sys, nbtl_search.worker.supervisor, nbtl_search.reports.terminal.status\n"
        "bad = {'plotly', 'optuna_dashboard', 'torch'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_status_of_a_real_study(study):
    with study.storage.engine.begin() as connection:  # its worker may have been made long ago
        connection.execute(text("UPDATE nbtl_worker SET seen_at = clock_timestamp()"))
    report = status_of(study)
    assert (report.state, report.n_trials, report.running) == ("running", 8, 1)
    assert report.complete + report.pruned + report.paused == 6
    assert report.paused > 0
    assert report.waiting == 1
    assert report.best is not None
    assert (report.best["value"] or 0) >= (report.default["value"] or 100)
    assert report.eta_s is not None
    assert report.eta_s > 0
    Ledger(study.storage.engine, study.id).want("pause")
    assert status_of(study).eta_s is None
