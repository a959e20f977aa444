"""Kill what can be killed: nothing is lost, nothing is counted twice, no curve changes."""

import os
import random
import signal
import time

import pytest

from nbtl_search import api
from nbtl_search.postgres import server
from tests.acceptance.conftest import FAST, check_invariants, wait_until
from tests.rounds import LONG

pytestmark = [pytest.mark.postgres, pytest.mark.chaos, pytest.mark.slow]

N_TRIALS, N_KILLS = (24, 20) if LONG else (8, 10)


def kill_one(program, chance):
    """Kill a trainer, a supervisor, or both; return how many processes that were."""
    trainers, workers = program.processes("trainer"), program.processes("worker")
    what = chance.choice(["trainer", "supervisor", "both"])
    victims = []
    if what in {"trainer", "both"} and trainers:
        victims.append(chance.choice(trainers))
    if what in {"supervisor", "both"} and workers:
        victims.append(chance.choice(workers))
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    return len(victims)


@pytest.mark.timeout(900)
def test_many_kills_change_no_result(program, tiny):
    seed = 20211
    chance = random.Random(seed)
    program.ok(*tiny, "--epochs", 6, "--trials", N_TRIALS)
    launch = program.start("launch", "tiny", "--workers", 3, "--quiet", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 0)
    n_kills = 0
    while n_kills < N_KILLS and launch.poll() is None:
        n_kills += kill_one(program, chance)
        time.sleep(chance.uniform(0.2, 2.0))
    assert n_kills >= N_KILLS, f"the study ended after {n_kills} kills (seed {seed})"
    assert launch.wait(600) == 0, launch.stderr.read()
    trials, curves, recipes = check_invariants(program, "tiny", n_trials=N_TRIALS)
    assert sum(trial.n_attempts for trial in trials) > N_TRIALS
    for trial in trials:
        unkilled = api.train(recipes[trial.number], home=program.home)
        for ours, theirs in zip(curves[trial.number], unkilled, strict=False):
            assert ours.same_result(theirs), (trial.number, ours, theirs)


@pytest.mark.timeout(600)
def test_a_database_stopped_for_ten_seconds_is_waited_for(program, tiny):
    program.ok(*tiny, "--epochs", 8, "--trials", 6)
    launch = program.start("launch", "tiny", "--workers", 2, "--quiet", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 0)
    before = {process.pid for process in program.processes("worker")}
    program.ok("db", "stop")
    time.sleep(10)
    assert {process.pid for process in program.processes("worker")} == before
    program.ok("db", "start")
    assert launch.wait(300) == 0, launch.stderr.read()
    check_invariants(program, "tiny", n_trials=6)


@pytest.mark.timeout(300)
def test_an_embedded_database_that_dies_is_started_by_its_workers(program, tiny):
    program.ok(*tiny, "--epochs", 8, "--trials", 3)
    worker = program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 0)
    died = server.status(program.home).pid
    assert died is not None
    os.kill(died, signal.SIGKILL)
    assert worker.wait(200) == 0, worker.stderr.read()
    assert server.status(program.home).pid not in {died, None}
    check_invariants(program, "tiny", n_trials=3)


@pytest.mark.timeout(600)
def test_a_worker_frozen_beyond_its_lease_is_fenced(program, tiny):
    program.ok(*tiny, "--epochs", 8, "--trials", 3)
    frozen = program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 0)
    (worker,) = program.processes("worker")
    (trainer,) = program.processes("trainer")
    for process in (worker, trainer):
        process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    other = program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["complete"] > 0)
    for process in (worker, trainer):
        process.send_signal(signal.SIGCONT)
    assert frozen.wait(200) == 0, frozen.stderr.read()
    assert other.wait(200) == 0, other.stderr.read()
    trials, curves, recipes = check_invariants(program, "tiny", n_trials=3)
    assert trials[0].n_attempts == 2
    unkilled = api.train(recipes[0], home=program.home)
    assert all(a.same_result(b) for a, b in zip(curves[0], unkilled, strict=True))


@pytest.mark.timeout(300)
def test_sigterm_checkpoints_releases_and_exits_within_ten_seconds(program, tiny):
    program.ok(*tiny, "--epochs", 50, "--trials", 2)
    worker = program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 1)
    started = time.monotonic()
    worker.terminate()
    assert worker.wait(30) == 0, worker.stderr.read()
    assert time.monotonic() - started < 10
    report = program.status("tiny")
    assert (report["running"], report["waiting"]) == (0, 2)
    assert list((program.home / "checkpoints").rglob("*")), "no checkpoint was left"
    assert not program.processes("trainer")


@pytest.mark.timeout(300)
def test_pause_resume_and_stop_reach_the_workers(program, tiny):
    program.ok(*tiny, "--epochs", 30, "--trials", 3)
    worker = program.start("worker", "tiny", *FAST)
    wait_until(lambda: program.status("tiny")["epochs_spent"] > 1)
    program.ok("pause", "tiny")
    wait_until(lambda: program.status("tiny")["running"] == 0)
    report = program.status("tiny")
    assert (report["state"], [w["state"] for w in report["workers"]]) == ("paused", ["paused"])
    program.ok("resume", "tiny")
    spent = report["epochs_spent"]
    wait_until(lambda: program.status("tiny")["epochs_spent"] > spent)
    program.ok("stop", "tiny")
    assert worker.wait(30) == 0, worker.stderr.read()
    assert program.status("tiny")["state"] == "stopped"
