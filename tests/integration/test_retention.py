"""Which checkpoints stay, when there is no room, and what `clean` finds."""

import os
import time

import pytest

from nbtl_search.cli.machine import printable
from nbtl_search.files.rotation import N_KEPT, rotate
from nbtl_search.ledger.leases import Leases, TrialOutcome
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.study import sampling, store
from nbtl_search.worker import retention
from nbtl_search.worker.retention import Retention, checkpoints_of
from nbtl_search.worker.settings import WorkerSettings
from nbtl_search.workspace.workspace import Workspace
from tests.integration.test_grants import epoch

pytestmark = pytest.mark.postgres


@pytest.fixture
def study(db, spec, tmp_path):
    """Trials 0 and 1 are complete (60, 70), 2 pruned, 3 runs, 4 waits; each has two checkpoints."""
    study = store.create(db, spec)
    leases = Leases(db.engine, study.id, ladder=study.ladder)
    held = [leases.grant("w", sampling.asking(study)) for _ in range(5)]
    for number in (0, 1):
        lease = held[number]
        assert lease is not None
        leases.finish(lease, TrialOutcome(state="complete", value=60.0 + 10 * number, best_epoch=1))
    assert held[2] is not None
    assert held[4] is not None
    leases.finish(held[2], TrialOutcome(state="pruned", value=99.0, best_epoch=1))
    leases.release(held[4], cause="preempted")
    for number in range(5):
        folder = checkpoints_of(study, tmp_path) / str(number)
        folder.mkdir(parents=True)
        for number_of_epoch in (1, 2):
            (folder / f"{number_of_epoch:06d}-00000000.ckpt").write_bytes(b"x" * 1000)
    return study


def pause(study, top1):
    """Let a further trial pause with this accuracy, with two checkpoints; return its number."""
    leases = Leases(study.storage.engine, study.id, ladder=study.ladder)
    lease = leases.grant("w", sampling.asking(study))
    assert lease is not None
    leases.record(lease, [epoch(1, top1)])
    leases.pause(lease)
    return lease.number


def left(study, home):
    return {
        folder.name: len(list(folder.iterdir())) for folder in checkpoints_of(study, home).iterdir()
    }


def test_of_a_paused_trial_the_last_stays(study, tmp_path):
    number = pause(study, 50.0)
    folder = checkpoints_of(study, tmp_path) / str(number)
    folder.mkdir()
    for name in ("000001-00000000.ckpt", "000002-00000000.ckpt"):
        (folder / name).write_bytes(b"x")
    Retention(study=study, settings=WorkerSettings(home=tmp_path)).sweep()
    assert [path.name for path in folder.iterdir()] == ["000002-00000000.ckpt"]


def test_where_room_is_short_the_least_accurate_paused_trials_give_way(study, tmp_path):
    paused = {top1: str(pause(study, top1)) for top1 in (50.0, 40.0, 60.0)}
    for number in paused.values():
        folder = checkpoints_of(study, tmp_path) / number
        folder.mkdir()
        (folder / "000001-00000000.ckpt").write_bytes(b"x" * 1000)
    # Those that live have 4,000 bytes, and one that is paused has room beside them.
    settings = WorkerSettings(home=tmp_path, free_gb=0, quota_gb=5100 / 1e9, keep_best=0)
    assert Retention(study=study, settings=settings).shortage() is None
    assert left(study, tmp_path) == {"3": 2, "4": 2, paused[60.0]: 1}


@pytest.mark.parametrize(
    ("keep_best", "kept"),
    [(0, {"3": 2, "4": 2}), (1, {"1": 1, "3": 2, "4": 2}), (9, {"0": 1, "1": 1, "3": 2, "4": 2})],
)
def test_what_lives_stays_and_of_the_best_the_last(study, tmp_path, keep_best, kept):
    rules = Retention(study=study, settings=WorkerSettings(home=tmp_path, keep_best=keep_best))
    rules.sweep()
    rules.sweep()
    assert left(study, tmp_path) == kept


def test_room_is_made_before_there_is_none(study, tmp_path):
    def shortage(quota_gb):
        return Retention(
            study=study, settings=WorkerSettings(home=tmp_path, quota_gb=quota_gb)
        ).shortage()

    assert shortage(10_500 / 1e9) is None
    assert len(left(study, tmp_path)) == 5, "nothing was swept while there was room"
    assert shortage(4_500 / 1e9) is None
    assert left(study, tmp_path) == {"3": 2, "4": 2}
    assert "at most" in str(shortage(1_000 / 1e9))
    assert left(study, tmp_path) == {"3": 2, "4": 2}, "what lives is never removed"


def test_a_floor_above_what_is_free_is_a_shortage(study, tmp_path):
    assert "are free" in str(
        Retention(study=study, settings=WorkerSettings(home=tmp_path, free_gb=1e9)).shortage()
    )
    assert (
        Retention(study=study, settings=WorkerSettings(home=tmp_path, free_gb=1e-9)).shortage()
        is None
    )


def found(study, home, *, all_studies=True):
    items = retention.leftovers(
        home, [study], all_studies=all_studies, logs_older_than_s=3600, now_s=time.time()
    )
    return {str(item.path.relative_to(home)) for item in items}


def test_clean_finds_what_ended_and_what_belongs_to_nobody(study, tmp_path):
    name = checkpoints_of(study, tmp_path).name
    (tmp_path / "checkpoints" / "gone-12345678" / "0").mkdir(parents=True)
    ended = {f"checkpoints/{name}/{number}" for number in (0, 1, 2)}
    assert found(study, tmp_path) == ended | {"checkpoints/gone-12345678"}
    assert found(study, tmp_path, all_studies=False) == ended


def test_old_logs_go_unless_a_worker_lives(study, tmp_path):
    folder = tmp_path / "logs" / study.name
    folder.mkdir(parents=True)
    for name in ("old.log", "new.log"):
        (folder / name).write_text("x")
    os.utime(folder / "old.log", (0, 0))
    log = f"logs/{study.name}/old.log"
    assert log in found(study, tmp_path)
    assert f"logs/{study.name}/new.log" not in found(study, tmp_path)
    ledger = Ledger(study.storage.engine, study.id)
    ledger.heartbeat("w", host="h", pid=1, device="cpu", state="training", trial_number=3)
    assert log not in found(study, tmp_path)


def test_a_log_that_grew_is_moved_and_few_are_kept(tmp_path):
    log = tmp_path / "a.log"
    for number in range(N_KEPT + 3):
        log.write_text(f"{number}" * 100)
        rotate(log, max_bytes=50)
        assert not log.exists()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"a.log.{number}" for number in range(1, N_KEPT + 1)]
    assert (tmp_path / "a.log.1").read_text().startswith(str(N_KEPT + 2))
    log.write_text("short")
    rotate(log, max_bytes=50)
    assert log.read_text() == "short"


def test_logs_show_the_end_and_no_control_characters(tmp_path):
    folder = tmp_path / "logs" / "x"
    folder.mkdir(parents=True)
    (folder / "slot-0.log").write_bytes(b"one\ntwo\n\x1b[31mred\xff\n")
    lines = Workspace(tmp_path).logs.last("x", n_lines=2)
    assert lines[0].text == "two"
    assert "\x1b" not in printable("\x1b[31mred")
