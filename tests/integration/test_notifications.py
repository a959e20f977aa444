"""People are told each thing once, by whoever notifications it, through a real HTTP server."""

import hashlib
import hmac
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

from nbtl_search.errors import NbtlError, SpecError
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.spec import Budget, Epoch
from nbtl_search.study import notifications, sampling, store
from nbtl_search.study.notifications import WebhookSettings
from nbtl_search.workspace.notifications import send_due
from nbtl_search.workspace.workspace import Workspace

SECRET = "a-secret-of-some-length"
pytestmark = pytest.mark.postgres


class Receiver(ThreadingHTTPServer):
    """Receives webhooks; answers with the codes it is given, then with 200."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.codes: list[int] = []
        self.received: list[tuple[str, bytes]] = []

    @property
    def settings(self):
        return WebhookSettings(url=f"http://127.0.0.1:{self.server_port}/hook", secret=SECRET)

    @property
    def messages(self):
        return [json.loads(body) for _, body in self.received]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        code = self.server.codes.pop(0) if self.server.codes else 200
        if code == 200:
            self.server.received.append((self.headers[notifications.HEADER], body))
        self.send_response(code)
        self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def receiver():
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def study(db, spec):
    return store.create(db, spec.replace(budget=Budget(n_trials=2)))


def send_now(study, settings):
    return send_due(study, settings, notifications.due(study))


def run(study, *, failing=0):
    """End all trials, the first ones as failed."""
    leases = Leases(study.storage.engine, study.id, ladder=study.ladder)
    for number in range(2):
        lease = leases.grant("w", sampling.asking(study))
        epoch = Epoch(
            epoch=1, train_loss=1, val_loss=1, val_top1=70 + number, val_top5=90, lr=0.1,
            n_images=32, seconds=2.0, micro_batch=8,
        )  # fmt: skip
        assert lease is not None
        leases.record(lease, [epoch])
        end = TrialOutcome(state="complete", value=70.0 + number, best_epoch=1)
        if number < failing:
            end = TrialOutcome(state="failed", cause="infra", message='a "quoted"\nmessage')
        leases.finish(lease, end)


def test_a_finished_study_is_told_once_and_signed(study, receiver):
    assert send_now(study, receiver.settings) == []
    run(study, failing=1)
    assert sorted(notification.event for notification in send_now(study, receiver.settings)) == [
        "failed", "finished",
    ]  # fmt: skip
    assert send_now(study, receiver.settings) == []
    for header, body in receiver.received:
        seconds, given = (part.partition("=")[2] for part in header.split(","))
        wanted = hmac.new(SECRET.encode(), f"{seconds}.".encode() + body, hashlib.sha256)
        assert given == wanted.hexdigest()
    failed, finished = sorted(receiver.messages, key=lambda message: message["event"])
    assert failed["details"]["message"] == 'a "quoted"\nmessage'
    assert finished["details"]["best"] == {"trial": 1, "value": 71.0}
    assert "71.00 %" in finished["text"]
    assert (finished["version"], finished["study"]) == (1, "cats")


def test_many_tellers_send_one_message(study, receiver):
    run(study)
    tellers = [threading.Thread(target=send_now, args=(study, receiver.settings)) for _ in range(2)]
    for teller in tellers:
        teller.start()
    for teller in tellers:
        teller.join()
    assert [message["event"] for message in receiver.messages] == ["finished"]


@pytest.mark.parametrize("code", [500, 404, 302])
def test_what_was_not_taken_is_sent_again_after_a_pause(study, receiver, code):
    run(study)
    receiver.codes = [code]
    assert send_now(study, receiver.settings) == []
    assert send_now(study, receiver.settings) == [], "not at once"
    age(study, "claimed_at", "2 minutes", table="nbtl_notification")
    (told,) = send_now(study, receiver.settings)
    assert told.event == "finished"
    assert len(receiver.received) == 1


def age(study, column, by, *, table):
    with study.storage.engine.begin() as connection:
        connection.execute(text(f"UPDATE {table} SET {column} = {column} - interval '{by}'"))


def test_a_claim_whose_sender_died_is_taken_again_with_the_same_id(study, receiver):
    run(study)
    (notification,) = notifications.due(study)
    assert notifications.claim(study, notification)
    assert send_now(study, receiver.settings) == []
    age(study, "claimed_at", "2 minutes", table="nbtl_notification")
    assert send_now(study, receiver.settings)
    age(study, "claimed_at", "1 day", table="nbtl_notification")
    assert send_now(study, receiver.settings) == []


def test_a_study_stalls_when_nothing_happens_for_long_and_only_then(study):
    assert notifications.due(study) == []
    age(study, "created_at", "14 minutes", table="nbtl_study")
    assert notifications.due(study) == []
    age(study, "created_at", "2 minutes", table="nbtl_study")
    (stalled,) = notifications.due(study)
    assert stalled.event == "stalled"
    Ledger(study.storage.engine, study.id).want("pause")
    assert notifications.due(study) == []


def test_a_slow_epoch_is_no_stall(study):
    run(study)
    with study.storage.engine.begin() as connection:
        connection.execute(text("UPDATE nbtl_trial SET state = 'waiting', finished_at = NULL"))
        connection.execute(text("UPDATE nbtl_epoch SET seconds = 1200"))
    for column, table in (("created_at", "nbtl_study"), ("recorded_at", "nbtl_epoch")):
        age(study, column, "30 minutes", table=table)
    assert notifications.due(study) == []
    for column, table in (("created_at", "nbtl_study"), ("recorded_at", "nbtl_epoch")):
        age(study, column, "40 minutes", table=table)
    assert [notification.event for notification in notifications.due(study)] == ["stalled"]


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        ('url = "https://x/h"\nsecret = "s3cr3t-of-some-length"\n', 0o644, "chmod 600"),
        ('url = "ftp://x/h"\nsecret = "s3cr3t-of-some-length"\n', 0o600, "url is not valid"),
        ('url = "https://x/h"\nsecret = "s3cr3t"\n', 0o600, "secret is not valid"),
        ('url = "https://x/h"\nsecrte = "s3cr3t-of-some-length"\n', 0o600, "secret"),
    ],
)
def test_a_bad_file_is_refused_without_its_secrets(tmp_path, content, mode, says):
    file = tmp_path / "webhook.toml"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(SpecError, match=says) as caught:
        notifications.read_settings(file)
    assert "s3cr3t" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_there_is_one_line_with_the_host_only():
    settings = WebhookSettings(url="http://127.0.0.1:9/token-in-path", secret=SECRET)
    with pytest.raises(NbtlError, match=r"127\.0\.0\.1") as caught:
        notifications.send(settings, {"event": "test"})
    assert "token-in-path" not in str(caught.value)


def test_who_watches_ends_also_where_another_told_the_end(study, receiver, tmp_path, database_url):
    run(study)
    send_now(study, receiver.settings)
    workspace = Workspace(tmp_path, database_url)
    file = tmp_path / "webhook.toml"
    file.touch(mode=0o600)
    file.write_text(f'url = "{receiver.settings.url}"\nsecret = "{SECRET}"\n')
    workspace.notifications.send("cats", file, every_s=60.0)
    file.write_text(f'url = "{receiver.settings.url}"\nsecret = "{SECRET}"\nevents = ["failed"]\n')
    workspace.notifications.send("cats", file, every_s=60.0)
    assert len(receiver.received) == 1


def test_what_speaks_no_http_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def garble():
            client, _ = server.accept()
            with client:
                client.recv(10_000)
                client.sendall(b"garbage\r\n\r\n")

        thread = threading.Thread(target=garble)
        thread.start()
        settings = WebhookSettings(url=f"http://127.0.0.1:{port}/h", secret=SECRET)
        with pytest.raises(NbtlError, match="BadStatusLine"):
            notifications.send(settings, {"event": "test"})
        thread.join()
    with pytest.raises(NbtlError, match="InvalidURL"):
        notifications.send(
            WebhookSettings(url="http://host:abc/", secret=SECRET), {"event": "test"}
        )


def test_a_receiver_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/h"
        settings = WebhookSettings(url=url, secret=SECRET, timeout_s=0.2)
        with pytest.raises(NbtlError, match="timed out"):
            notifications.send(settings, {"event": "test"})
