"""Each invariant catches what it is for: a violation planted in a sound study is found."""

import secrets
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import text

from nbtl_search.ledger import database as storage
from nbtl_search.study import store
from nbtl_search.worker.retention import checkpoints_of
from tests.chaos import invariants, workers
from tests.chaos.conftest import make_study, plain

BETTER = """
UPDATE nbtl_epoch SET val_top1 = 100
WHERE trial_id = (SELECT min(trial_id) FROM nbtl_trial WHERE state = 'pruned')
"""
PLANTED = {
    "a trial too many slots": ("budget", "UPDATE nbtl_trial SET slot = 1"),
    "a trial that was never finished": (
        "budget", "UPDATE nbtl_trial SET state = 'waiting' WHERE number = 1",
    ),
    "a slot that was lost": ("budget", "UPDATE nbtl_study SET started = started - 1"),
    "an open attempt": ("leases", "UPDATE nbtl_attempt SET ended_at = NULL WHERE attempt = 1"),
    "a trial of which nobody notified Optuna": (
        "leases", "UPDATE nbtl_trial SET notified = false WHERE number = 2",
    ),
    "an attempt that is missing": (
        "attempts", "UPDATE nbtl_trial SET attempt = 2 WHERE number = 0",
    ),
    "an unknown cause": ("attempts", "UPDATE nbtl_attempt SET cause = 'who knows'"),
    "a failure out of nothing": (
        "failures", "UPDATE nbtl_trial SET state = 'failed' WHERE number = 0",
    ),
    "an epoch that is missing": ("curves", "DELETE FROM nbtl_epoch WHERE epoch = 1"),
    "an epoch of another run": ("curves", "UPDATE nbtl_epoch SET val_top1 = 1 WHERE epoch = 1"),
    "a value that is not the best": ("curves", "UPDATE nbtl_trial SET value = value - 1"),
    "an epoch beyond what was granted": (
        "grants", "UPDATE nbtl_trial SET granted = granted - 1 WHERE number = 0",
    ),
    "a trial that should have been promoted": ("grants", BETTER),
    "a cancellation that was not asked for": (
        "wishes", "UPDATE nbtl_trial SET cause = 'cancelled' WHERE number = 0",
    ),
    "a cancellation that was forgotten": (
        "wishes", "UPDATE nbtl_trial SET desired = 'cancel' WHERE state = 'pruned'",
    ),
    "a repeat of another recipe": (
        "repeats", "UPDATE nbtl_trial SET repeat_of = 0 WHERE number = 1",
    ),
    "another end in Optuna": ("notified", "UPDATE trials SET state = 'FAIL' WHERE number = 0"),
    "another value in Optuna": ("notified", "UPDATE trial_values SET value = 1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def template(server):
    """The name of a database with a study that a worker has ended, and that worker's home."""
    name = f"chaos_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE template")
    url = server.url.set(database=name)
    study = make_study(url, n_trials=4, epochs=4)
    with tempfile.TemporaryDirectory(prefix="nbtl-chaos-home-") as folder:
        job = workers.Job(url=plain(url), study=study.name, home=Path(folder), epoch_s=0)
        worker = workers.start(job)
        worker.join(200)
        assert worker.exitcode == 0
        study.storage.close()
        yield name, Path(folder)
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def ended(server, template):
    """A copy of that study, to be spoilt."""
    name = f"chaos_{secrets.token_hex(6)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {template[0]}")
    opened = storage.connect(plain(server.url.set(database=name)), home=None)
    yield store.open_study(opened, "chaos")
    opened.close()
    server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_a_sound_study_has_no_violation(ended, template):
    assert invariants.violations(ended) == []
    assert invariants.leftovers(ended, template[1]) == []


@pytest.mark.parametrize("what", PLANTED)
def test_a_planted_violation_is_found(ended, what):
    check, statement = PLANTED[what]
    with ended.storage.engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount > 0
    ended.storage.close()
    ended.storage.__dict__.pop("optuna", None)  # its cache holds what was
    fresh = store.open_study(ended.storage, ended.name)
    assert [line for line in invariants.violations(fresh) if line.startswith(check)]


def test_a_checkpoint_that_was_left_is_found(ended, home):
    folder = checkpoints_of(ended, home) / "0"
    folder.mkdir(parents=True)
    (folder / "000001-00000000.ckpt").write_bytes(b"left")
    assert invariants.leftovers(ended, home) == ["checkpoint 000001-00000000.ckpt"]
