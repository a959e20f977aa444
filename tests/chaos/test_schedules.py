"""Kill what can be killed at seeded random moments: nothing is lost, twice, or different.

`NBTL_CHAOS_SCHEDULES` says how many schedules (`make chaos`: 200), `NBTL_CHAOS_SEED` the first
seed. Those of `make test` are the fewest that have every kind of kill. The seed of a failure is in
the test's name.
"""

import contextlib
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
from sqlalchemy.exc import DBAPIError

from nbtl_search.errors import SpecError, StorageError
from nbtl_search.ledger import records
from nbtl_search.ledger.ledger import Ledger
from nbtl_search.postgres.server import start, status
from nbtl_search.study import cancellation
from nbtl_search.worker.retention import checkpoints_of
from tests.chaos import invariants, stub_trainer, workers
from tests.chaos.conftest import make_study, plain
from tests.rounds import N_SCHEDULES

FIRST_SEED = int(os.environ.get("NBTL_CHAOS_SEED", "0"))
DEADLINE_S = 120.0
KINDS = (
    "trainer", "supervisor", "both", "postmaster", "backend", "terminate", "freeze", "checkpoints",
    "cancel",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study, and what happens to it when; `chance` picks the victims."""

    chance: random.Random
    epochs: int
    n_trials: int
    budget_epochs: int | None
    rungs: tuple[float, ...]
    epoch_s: float
    events: tuple[tuple[float, str], ...]


def plan_of(seed):
    chance = random.Random(seed)
    epochs, n_trials = chance.randint(4, 7), chance.randint(5, 12)
    budget_epochs = chance.choice([None, chance.randint(epochs, epochs * n_trials)])
    rungs = chance.choice([(0.34, 0.67), (0.34,), ()])
    if not rungs:
        budget_epochs = None  # then enough recipes are whole for repeats
    epoch_s = chance.uniform(0.06, 0.2)
    times = sorted(chance.uniform(0.2, 3.0) for _ in range(chance.randint(3, 7)))
    events = tuple((at, chance.choice(KINDS)) for at in times)
    return Plan(
        chance=chance, epochs=epochs, n_trials=n_trials, budget_epochs=budget_epochs,
        rungs=rungs, epoch_s=epoch_s, events=events,
    )  # fmt: skip


@dataclass
class Siege:
    """A study under attack: its workers, and what is done to them."""

    server: Any
    study: Any
    job: workers.Job
    chance: random.Random
    workers: list[Any] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    later: list[tuple[float, int]] = field(default_factory=list)
    n_to_cancel: int = 0

    def strike(self, kind):
        """Do one thing; note it if there was a victim."""
        supervisors = [w for w in self.workers if w.is_alive()]
        trainers = invariants.trainers(self.job.home)
        victims = []
        if kind in {"trainer", "both"} and trainers:
            victims.append((self.chance.choice(trainers).pid, signal.SIGKILL))
        if kind in {"supervisor", "both"} and supervisors:
            victims.append((self.chance.choice(supervisors).pid, signal.SIGKILL))
        if kind == "terminate" and supervisors:
            victims.append((self.chance.choice(supervisors).pid, signal.SIGTERM))
        if kind == "freeze" and supervisors:
            pid = self.chance.choice(supervisors).pid
            victims.append((pid, signal.SIGSTOP))
            self.later.append((time.monotonic() + 2 * workers.LEASE_S, pid))
        if kind == "postmaster":
            self.server.kill()
            self.done.append(kind)
        if kind == "backend":
            victims += [(pid, signal.SIGKILL) for pid in self.backends()[:1]]
        if kind == "checkpoints":
            self.lose_checkpoints()
        self.n_to_cancel += kind == "cancel"
        for pid, number in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                self.done.append(kind)
        if kind in {"postmaster", "backend"}:
            time.sleep(self.chance.choice([0.0, 0.3, 1.5]))
            start(self.server.home)

    def lose_checkpoints(self):
        """Remove what one trial has on the disk: it may run, wait, or be paused."""
        folders = sorted(checkpoints_of(self.study, self.job.home).glob("[0-9]*"))
        if folders:
            shutil.rmtree(self.chance.choice(folders), ignore_errors=True)
            self.done.append("checkpoints")

    def cancel_some(self):
        """Cancel as many as were to be, once so many are open: they may run, wait, or be paused."""
        while self.n_to_cancel and (trials := self.open_trials()):
            # It may end before this is heard, and is refused then.
            with contextlib.suppress(SpecError):
                cancellation.cancel(self.study, self.chance.choice(trials))
                self.done.append("cancel")
                self.n_to_cancel -= 1

    def open_trials(self):
        """Return the numbers of those that may be cancelled, and were not."""
        return [
            trial["number"]
            for trial in invariants.trials_of(self.study)
            if trial["finished_at"] is None
            and trial["desired"] == "run"
            and trial["name"] != records.DEFAULT
        ]

    def backends(self):
        """Return the server's processes that serve our workers."""
        postmaster = psutil.Process(status(self.server.home).pid)
        found = [child for child in postmaster.children() if "chaos_" in " ".join(child.cmdline())]
        return [child.pid for child in self.chance.sample(found, len(found))]

    def thaw(self, now):
        """Let what was frozen long enough go on."""
        for at, pid in [entry for entry in self.later if entry[0] <= now]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            self.later.remove((at, pid))

    def replace_the_dead(self):
        """Start a worker for each that is gone, as a launcher would."""
        for index, worker in enumerate(self.workers):
            if not worker.is_alive():
                worker.join()
                # Told to stop before it could listen, it ends by the signal itself.
                assert worker.exitcode in {0, -signal.SIGKILL, -signal.SIGTERM}, self.log()
                self.workers[index] = workers.start(self.job)

    def is_over(self):
        try:
            return Ledger(self.study.storage.engine, self.study.id).is_over()
        except StorageError:
            return False

    def log(self):
        log = self.job.home / "workers.log"
        return log.read_text()[-6000:] if log.exists() else "no worker has written anything"


def besiege(siege, n_workers, events):
    """Run the study to its end while the events happen."""
    siege.workers = [workers.start(siege.job) for _ in range(n_workers)]
    started = time.monotonic()
    while not siege.is_over():
        now = time.monotonic() - started
        assert now < DEADLINE_S, siege.log()
        while events and events[0][0] <= now:
            siege.strike(events.pop(0)[1])
        with contextlib.suppress(StorageError, DBAPIError):
            siege.cancel_some()
        siege.thaw(time.monotonic())
        siege.replace_the_dead()
        time.sleep(0.02)
    siege.thaw(float("inf"))
    time.sleep(0.1)
    siege.replace_the_dead()  # also whoever was struck as the study ended
    for worker in siege.workers:
        worker.join(DEADLINE_S)
        assert worker.exitcode == 0, siege.log()


def check(siege):
    """Check all invariants; what dies with its supervisor gets a moment for it."""
    deadline = time.monotonic() + 10
    while invariants.trainers(siege.job.home) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert invariants.violations(siege.study) == [], siege.log()
    assert invariants.leftovers(siege.study, siege.job.home) == [], siege.log()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + N_SCHEDULES))
def test_no_schedule_of_kills_changes_a_result(server, database, home, seed, record_property):
    plan = plan_of(seed)
    study = make_study(
        database,
        n_trials=plan.n_trials,
        epochs=plan.epochs,
        budget_epochs=plan.budget_epochs,
        rungs=plan.rungs,
    )
    job = workers.Job(url=plain(database), study=study.name, home=home, epoch_s=plan.epoch_s)
    siege = Siege(server, study, job, plan.chance)
    started = time.monotonic()
    try:
        besiege(siege, 2, list(plan.events))
        check(siege)
        n_repeats = sum(t["repeat_of"] is not None for t in invariants.trials_of(study))
    finally:
        for worker in siege.workers:
            worker.kill()
            worker.join()
        for trainer in invariants.trainers(home):
            trainer.kill()
        study.storage.close()
    record_property("kills", len(siege.done))
    record_property("repeats", n_repeats)
    told = f"{n_repeats} repeats, {' '.join(siege.done) or 'nothing'}"
    print(f"seed {seed}: {time.monotonic() - started:.1f} s, {told}")


def test_the_first_schedules_have_every_kind_of_kill():
    assert {kind for seed in range(4) for _, kind in plan_of(seed).events} == set(KINDS)


def test_the_stub_gives_another_curve_when_it_is_resumed_wrongly():
    recipe = {"dials": {"lr_high": 0.1}, "train": {"seed": 0, "epochs": 3}}
    _, wrong = stub_trainer.advanced(recipe, "another past", 2)
    assert wrong["val_top1"] != stub_trainer.curve(recipe)[1]["val_top1"]


def test_a_killed_supervisor_takes_its_trainer_with_it(database, home, study):
    worker = workers.start(workers.Job(url=plain(database), study=study.name, home=home))
    deadline = time.monotonic() + 30
    while not invariants.trainers(home):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.join()
    while invariants.trainers(home):
        assert time.monotonic() < deadline
        time.sleep(0.02)
