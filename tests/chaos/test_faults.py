"""One fault at a time, and exactly what becomes of it."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from nbtl_search.errors import FencedError
from nbtl_search.ledger import schema
from nbtl_search.ledger.leases import (
    MAX_FAILURES,
    MAX_LOST,
    Lease,
    Leases,
)
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres.server import start
from nbtl_search.spec import Dials, Epoch
from nbtl_search.study import store
from nbtl_search.worker.retention import checkpoints_of
from tests.chaos import invariants, stub_trainer, workers
from tests.chaos.conftest import plain
from tests.chaos.proxy import Proxy
from tests.rounds import LONG


def wait_for(condition, *, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, condition
        time.sleep(0.02)
    return found


class Crew:
    """The workers of a test; whoever is left at the end is killed."""

    def __init__(self, study, home, url):
        self.study, self.home, self.url = study, home, url
        self.all = []

    def start(self, **options):
        job = workers.Job(url=self.url, study=self.study.name, home=self.home, **options)
        worker = workers.start(job)
        self.all.append(worker)
        return worker

    def n_epochs(self):
        return sum(len(curve) for curve in invariants.curves_of(self.study).values())

    def ends(self, worker, *, code=0, timeout_s=90.0):
        worker.join(timeout_s)
        log = (self.home / "workers.log").read_text()[-4000:]
        assert worker.exitcode == code, log

    def interruptions(self):
        """Return the causes of attempts that did not end as planned."""
        planned = {"complete", "pruned", "paused"}
        return [
            one["cause"] for one in invariants.attempts_of(self.study)
            if one["cause"] not in planned
        ]  # fmt: skip

    def check(self):
        """Check every invariant, once trainers had time to notice that nobody is there."""
        wait_for(lambda: not invariants.trainers(self.home), timeout_s=10)
        assert invariants.violations(self.study) == []
        assert invariants.leftovers(self.study, self.home) == []


@pytest.fixture
def crew(study, home, database):
    crew = Crew(study, home, plain(database))
    yield crew
    for worker in crew.all:
        worker.kill()
        worker.join()
    for trainer in invariants.trainers(home):
        trainer.kill()


@pytest.fixture
def network(server, crew):
    """A network between workers and Postgres; the crew's address goes through it."""
    url = server.url
    proxy = Proxy(Path(url.query["host"]) / f".s.PGSQL.{url.query['port']}")
    through = url.set(
        host="127.0.0.1", port=proxy.port, query={}, database=crew.study.storage.url.database
    )
    crew.url = plain(through)
    yield proxy
    proxy.close()


def causes(study, number=0):
    return [row["cause"] for row in invariants.attempts_of(study) if row["number"] == number]


# -- the trainer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("hangs:2", "no heartbeat"),
        ("segfaults:2", "SIGSEGV"),
        ("is-killed:2", "SIGKILL: the kernel's out-of-memory killer"),
    ],
)
def test_a_trainer_that_always_dies_fails_its_trials_by_name(crew, fault, says):
    worker = crew.start(fault=fault, hang_s=0.7, epoch_s=0.02)
    crew.ends(worker)
    trials = invariants.trials_of(crew.study)
    assert {trial["state"] for trial in trials} == {"failed"}
    assert all(says in trial["message"] for trial in trials)
    assert causes(crew.study) == ["infra"] * (1 + MAX_FAILURES)
    crew.check()


def test_a_trainer_that_cannot_start_ends_its_worker_and_costs_no_trial(crew):
    crew.ends(crew.start(fault="dies-at-once"), code=2)
    assert invariants.trials_of(crew.study) == []
    healthy = crew.start()
    crew.ends(healthy)
    crew.check()


def test_a_trial_that_takes_its_worker_down_fails_and_the_others_go_on(crew):
    crew.start(fault="kills-its-supervisor:1")
    wait_for(lambda: invariants.trials_of(crew.study))
    deadline = time.monotonic() + 120
    while invariants.trials_of(crew.study)[0]["state"] != "failed":
        assert time.monotonic() < deadline
        if not crew.all[-1].is_alive():
            crew.start(fault="kills-its-supervisor:1")
        time.sleep(0.02)
    (first,) = invariants.trials_of(crew.study)[:1]
    assert first["n_lost"] == MAX_LOST + 1
    assert "workers in a row were lost" in first["message"]
    for worker in crew.all:
        worker.kill()
        worker.join()
    crew.ends(crew.start())
    states = [trial["state"] for trial in invariants.trials_of(crew.study)]
    assert states[0] == "failed"
    assert set(states[1:]) <= {"complete", "pruned"}
    crew.check()


# -- the disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "a bit", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(crew, damage):
    worker = crew.start(epoch_s=0.3)
    folder = checkpoints_of(crew.study, crew.home) / "0"
    wait_for(lambda: len(list(folder.glob("*.ckpt"))) == 2)
    worker.kill()
    worker.join()
    wait_for(lambda: not invariants.trainers(crew.home))
    newest = max(folder.glob("*.ckpt"))
    content = bytearray(newest.read_bytes())
    if damage == "a bit":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncated": content[:-9], "a bit": content, "empty": bytearray()}[damage])
    crew.ends(crew.start())
    assert causes(crew.study)[0] == "infra"
    crew.check()


def mount_small(folder):
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"a small file system must be mounted to be filled: {done.stderr.strip()}")


@pytest.fixture
def small_disk(home):
    """A real file system of 64 KiB where the checkpoints go."""
    folder = home / "checkpoints"
    mount_small(folder)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_costs_no_trial(crew, small_disk):
    filler = small_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        os.posix_fallocate(file.fileno(), 0, 128 * 1024)
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free))
    assert shutil.disk_usage(small_disk).free == 0
    worker = crew.start()
    wait_for(lambda: crew.n_epochs() >= 3)
    log = (crew.home / "workers.log").read_text()
    assert "no checkpoint" in log
    filler.unlink()
    crew.ends(worker)
    assert crew.interruptions() == []
    crew.check()


def test_below_the_floor_no_trial_begins_and_above_it_work_goes_on(crew, home):
    free_gb = shutil.disk_usage(home).free / 1e9
    worker = crew.start(free_gb=10 * free_gb)
    shown = "SELECT state FROM nbtl_worker WHERE study_id = :study"
    wait_for(lambda: [row["state"] for row in invariants.rows(crew.study, shown)] == ["no room"])
    assert invariants.trials_of(crew.study) == []
    worker.terminate()
    crew.ends(worker)
    crew.ends(crew.start(free_gb=free_gb / 10))
    crew.check()


# -- time -----------------------------------------------------------------------------------


def test_a_worker_frozen_beyond_its_lease_is_fenced_and_goes_on(crew):
    frozen = crew.start(epoch_s=0.4)
    wait_for(lambda: crew.n_epochs() >= 1)
    os.kill(frozen.pid, signal.SIGSTOP)
    other = crew.start(epoch_s=0.04)
    wait_for(lambda: invariants.trials_of(crew.study)[0]["attempt"] == 2)
    wait_for(lambda: invariants.trials_of(crew.study)[0]["state"] != "running")
    os.kill(frozen.pid, signal.SIGCONT)
    crew.ends(frozen)
    crew.ends(other)
    assert "belongs to a newer attempt" in (crew.home / "workers.log").read_text()
    crew.check()


def test_late_writes_of_a_fenced_worker_are_refused(crew):
    crew.ends(crew.start())
    (trial,) = invariants.trials_of(crew.study)[:1]
    late = Lease(
        trial_id=trial["trial_id"], number=0, name="", protected=False,
        recipe=crew.study.spec.recipe(Dials()), token=trial["token"], attempt=1, worker="late",
        until=4, n_recorded=0,
    )  # fmt: skip
    epoch = Epoch.parse(stub_trainer.advanced({"dials": {}, "train": {"seed": 1}}, "", 1)[1])
    with pytest.raises(FencedError):
        Leases(crew.study.storage.engine, crew.study.id, ladder=crew.study.ladder).record(
            late, [epoch]
        )
    crew.check()


SKEWED = """
import sys
from pathlib import Path
from tests.chaos import workers
url = sys.stdin.read()
workers.work(workers.Job(url=url, study=sys.argv[1], home=Path(sys.argv[2]), epoch_s=0.1))
"""


@pytest.mark.skew
@pytest.mark.parametrize("shift", ["+1h", "-1h"])
def test_a_clock_an_hour_off_makes_no_difference(crew, shift):
    """The lease is the database's time: a skewed worker neither loses nor keeps it longer."""
    skewed = subprocess.Popen(
        ["faketime", "-f", shift, sys.executable, "-c", SKEWED, crew.study.name, str(crew.home)],
        stdin=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        env=os.environ | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"},
    )  # fmt: skip
    skewed.stdin.write(crew.url)
    skewed.stdin.close()
    try:
        wait_for(lambda: crew.n_epochs() >= 1)
        other = crew.start(epoch_s=0.1)
        assert skewed.wait(90) == 0
        crew.ends(other)
    finally:
        skewed.kill()
        skewed.wait()
    assert crew.interruptions() == []
    crew.check()


# -- the database ---------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("down_s", [0, 20, 60] if LONG else [0, 20])
def test_a_postgres_that_is_down_is_waited_for(crew, server, down_s):
    worker = crew.start(epoch_s=0.15)
    wait_for(lambda: crew.n_epochs() >= 2)
    server.kill()
    time.sleep(down_s)
    start(server.home)
    crew.ends(worker)
    assert crew.interruptions() == []
    crew.check()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", ["stall", "drop", "reset", "refuse"])
def test_a_cut_network_is_waited_for(crew, network, mode):
    first = crew.start(epoch_s=0.15, answer_s=1.0)
    second = crew.start(epoch_s=0.15, answer_s=1.0)
    for seen in (1, 5):
        wait_for(lambda seen=seen: crew.n_epochs() >= seen)
        network.set(mode)
        time.sleep(2.5)
        network.set("pass")
    crew.ends(first)
    crew.ends(second)
    crew.check()


def test_a_network_cut_while_asking_loses_no_slot(crew, network):
    """The reservation is a transaction: what is cut in it was never taken."""
    started = crew.study.storage
    with started.engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM nbtl_study FOR UPDATE"))
        worker = crew.start(answer_s=30.0)
        wait_for(lambda: _waiting_for_lock(started))
        network.set("reset")
    network.set("pass")
    crew.ends(worker)
    crew.check()


def _waiting_for_lock(storage):
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with storage.engine.connect() as connection:
        return connection.execute(text(query)).scalar()


# -- versions -------------------------------------------------------------------------------


def set_version(study, number):
    with study.storage.engine.begin() as connection:
        connection.execute(text("UPDATE nbtl_meta SET version = :to"), {"to": number})


def test_an_old_worker_leaves_a_newer_database_alone(crew):
    set_version(crew.study, schema.VERSION + 1)
    crew.ends(crew.start(), code=2)
    assert invariants.trials_of(crew.study) == []
    assert "upgrade nbtl-search on this machine" in (crew.home / "workers.log").read_text()


def test_a_running_worker_ends_after_its_trial_when_the_database_is_upgraded(crew):
    worker = crew.start(epoch_s=0.2)
    wait_for(lambda: crew.n_epochs() >= 1)
    set_version(crew.study, schema.VERSION + 1)
    crew.ends(worker, code=2)
    trials = invariants.trials_of(crew.study)
    assert [trial["state"] for trial in trials] == ["complete"]
    set_version(crew.study, schema.VERSION)
    crew.ends(crew.start())
    crew.check()


def test_a_study_deleted_under_its_workers_ends_them(crew):
    worker = crew.start(epoch_s=0.3)
    wait_for(lambda: crew.n_epochs() >= 1)
    store.delete(crew.study.storage, crew.study.name)
    crew.ends(worker)
    wait_for(lambda: not invariants.trainers(crew.home), timeout_s=10)
    assert Ledger(crew.study.storage.engine, crew.study.id).desired() == "stop"
