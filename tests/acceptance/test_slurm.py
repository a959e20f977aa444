"""A study on a real Slurm of two nodes: tasks cancelled, queued again, a node lost, scaled."""

import json
import pickle
import tempfile
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from nbtl_search import api
from nbtl_search.ledger import database
from nbtl_search.postgres import server
from tests.acceptance.cluster import NODES, running_cluster
from tests.acceptance.conftest import check_invariants, free_port, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.postgres, pytest.mark.chaos, pytest.mark.slow]

EPOCHS = 12
N_TRIALS = 10
BEAT = ("--beat-s", "1.5")  # a lease of 9 s: four workers on two cores may take seconds to leave
SETTINGS = "gpus = 0\ncpus = 1\nmem_gb = 1.5\ntime_min = 60\nsignal_s = 30\n"


@pytest.fixture
def cluster():
    """A Slurm of its own for each test: a node that was set down must not matter to the next."""
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as folder,  # short, for sockets
        running_cluster(Path(folder), cpus=2) as cluster,
    ):
        yield cluster


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "slurm.toml"
    file.write_text(SETTINGS + f'cache = "{tmp_path}/cache-$SLURMD_NODENAME"\n')
    return file


def launch(program, cluster, settings, *options):
    printed = program.ok(
        "launch", "tiny", "--slurm", settings, *BEAT, "--json", *options, **cluster.environment
    )
    return json.loads(printed)


def causes(program):
    """Return why the attempts of all trials ended."""
    opened = program.open()
    with opened.engine.connect() as connection:
        found = list(connection.execute(text("SELECT cause FROM nbtl_attempt")).scalars())
    opened.close()
    return found


def training(program, cluster):
    """Return the tasks that run while every worker trains."""
    report = program.status("tiny")
    running = cluster.running()
    return running if report["running"] >= len(running) > 0 else None


def in_mid_trial(program):
    """Tell whether every trial that runs has trained an epoch, and has several to go."""
    opened = program.open()
    query = (
        "SELECT (SELECT count(*) FROM nbtl_epoch e WHERE e.trial_id = t.trial_id)"
        " FROM nbtl_trial t WHERE state = 'running'"
    )
    with opened.engine.connect() as connection:
        n_epochs = list(connection.execute(text(query)).scalars())
    opened.close()
    return bool(n_epochs) and all(1 <= n <= EPOCHS - 4 for n in n_epochs)


def interrupt(program, cluster, *command):
    """Do this to a task in mid-trial; to another one where the first was between two trials."""
    before = causes(program).count("preempted")
    for task in sorted(cluster.running()):
        wait_until(lambda: in_mid_trial(program), timeout_s=60)
        cluster.run(*command, task)
        for _ in range(20):
            if causes(program).count("preempted") > before:
                return task
            time.sleep(0.5)
    pytest.fail(f"no task was in mid-trial: {causes(program)}")


def hurried(cluster):
    """Let tasks that were queued again start now: Slurm has them wait for two minutes.

    On a busy machine the first limit may come before the worker has begun to train.
    """
    for task in cluster.waiting():
        cluster.start_now(task)
    return True


def everything_written(program, cluster):
    """Return the content of every file of the cluster and of the logs, pickles included."""
    folders = (cluster.root, program.home / "logs")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != "munge.key"}


@pytest.mark.timeout(900)
def test_a_study_survives_what_a_cluster_does_to_it(program, cluster, settings, tiny, tmp_path):
    # Without rungs a task is nearly always in mid-trial, where it is to be struck.
    rungs = ("--set", "search.pruning.rungs=[]")
    program.ok(*tiny, *rungs, "--epochs", EPOCHS, "--trials", N_TRIALS)
    program.ok("db", "serve", "--host", "127.0.0.1", "--port", free_port())
    assert launch(program, cluster, settings, "--workers", 4)["n_after"] == 4
    wait_until(lambda: len(cluster.running()) == 4, timeout_s=120)
    running = wait_until(lambda: training(program, cluster), timeout_s=240)
    assert set(running.values()) == set(NODES)

    cancelled = interrupt(program, cluster, "scancel")
    interrupt(program, cluster, "scontrol", "requeue")
    assert set(causes(program)) <= {None, "preempted", "complete", "paused"}
    assert cluster.tasks()[cancelled][0] in {"COMPLETED", "CANCELLED", "COMPLETING"}

    lost = next(iter(cluster.running().values()))
    cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=test")
    wait_until(lambda: lost not in cluster.running().values(), timeout_s=60)
    cluster.resume(lost)

    assert launch(program, cluster, settings, "--workers", 2)["n_after"] == 2
    again = launch(program, cluster, settings, "--workers", 3)
    assert (again["n_before"], again["n_after"]) == (2, 3)
    assert again["job_id"] is not None
    queue = json.loads(program.ok("status", "tiny", "--json", **cluster.environment))["queue"]
    assert sum(task["state"] in {"RUNNING", "PENDING"} for task in queue["tasks"]) == 3

    wait_until(lambda: program.status("tiny")["state"] == "finished", timeout_s=400, every_s=1.0)
    wait_until(lambda: not cluster.running(), timeout_s=60)
    launch(program, cluster, settings, "--workers", 0)  # those that were queued again, and wait
    wait_until(lambda: not cluster.waiting(), timeout_s=60)
    trials, curves, recipes = check_invariants(program, "tiny", n_trials=N_TRIALS)
    assert sum(trial.n_attempts for trial in trials) > N_TRIALS
    for trial in [trial for trial in trials if trial.n_attempts > 1][:4]:
        unkilled = api.train(recipes[trial.number], home=program.home)
        for ours, theirs in zip(curves[trial.number], unkilled, strict=False):
            assert ours.same_result(theirs), (trial.number, ours, theirs)

    check_what_is_left(program, cluster, tmp_path)


def check_what_is_left(program, cluster, tmp_path):
    """No password in scripts, pickles and logs; images decoded once a node; logs are found."""
    password = database.parse_url(server.served(program.home).read_text()).password
    written = everything_written(program, cluster)
    assert any(path.name.endswith("submitted.pkl") for path in written)
    assert any(b"#SBATCH" in content for content in written.values())
    assert not [path for path, content in written.items() if password.encode() in content]
    caches = sorted(path.name for path in tmp_path.glob("cache-*"))
    assert caches == [f"cache-{name}" for name in NODES]
    for cache in caches:
        assert len(list((tmp_path / cache / "data").glob("*-pillow-*"))) == 1
    assert "slurm/" in program.ok("logs", "tiny", "--worker", "_log.out")


@pytest.mark.timeout(900)
def test_at_its_time_limit_a_task_checkpoints_and_is_queued_again(program, cluster, settings, tiny):
    settings.write_text(SETTINGS.replace("time_min = 60", "time_min = 1"))
    program.ok(*tiny, "--epochs", 2000, "--trials", 2)
    program.ok("db", "serve", "--host", "127.0.0.1", "--port", free_port())
    job_id = launch(program, cluster, settings, "--workers", 1)["job_id"]
    wait_until(lambda: program.status("tiny")["running"] == 1, timeout_s=300, every_s=1.0)
    wait_until(
        lambda: "preempted" in causes(program) or not hurried(cluster), timeout_s=400, every_s=1.0
    )
    # A task that starts again before its first script is gone gets that one's exit code, and fails;
    # so does one in the same second, since a node knows by the second what it was told to kill.
    # Hurried once: each change of a task's start makes the scheduler begin anew with it.
    wait_until(lambda: cluster.left(job_id), timeout_s=60)
    time.sleep(2)
    hurried(cluster)
    wait_until(lambda: program.status("tiny")["running"] == 1, timeout_s=400, every_s=1.0)
    assert set(causes(program)) == {"preempted", None}
    assert launch(program, cluster, settings, "--workers", 0)["n_after"] == 0
    wait_until(lambda: not cluster.running(), timeout_s=60)
    wait_until(lambda: program.status("tiny")["running"] == 0, timeout_s=30)


def test_a_dry_run_prints_the_script_and_leaves_nothing(program, cluster, settings, tiny):
    program.ok(*tiny, "--epochs", 1, "--trials", 1)
    program.ok("db", "serve", "--host", "127.0.0.1", "--port", free_port())
    before = sorted(program.home.rglob("*.toml")), sorted((program.home / "logs").rglob("*"))
    printed = program.ok(
        "launch", "tiny", "--slurm", settings, "--dry-run", "--workers", 3, **cluster.environment
    )
    assert "#SBATCH --array=0-2%3" in printed
    assert "#SBATCH --requeue" in printed
    assert "NBTL_STORAGE=" in printed
    after = sorted(program.home.rglob("*.toml")), sorted((program.home / "logs").rglob("*"))
    assert (before, cluster.running()) == (after, {})


def test_the_socket_only_database_is_refused_with_both_ways_out(program, cluster, settings, tiny):
    program.ok(*tiny, "--epochs", 1, "--trials", 1)
    done = program.run("launch", "tiny", "--slurm", settings, **cluster.environment)
    assert done.returncode == 2
    assert "NBTL_STORAGE_FILE" in done.stderr
    assert "db serve" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (program.home / "logs" / "tiny" / "slurm").exists()


def test_the_pickle_of_a_task_holds_paths_only():
    from nbtl_search.launchers.task import WorkerTask

    task = WorkerTask(arguments=["worker", "tiny"], environment={"NBTL_STORAGE_FILE": "/x"})
    content = pickle.dumps(task)
    assert pickle.loads(content) == task  # noqa: S301
