"""Slurm is faked at its process boundary: programs of its names, on a PATH of the test's own."""

import pickle
import signal
import stat
import time

import pytest

from nbtl_search.errors import NbtlError, SpecError
from nbtl_search.launchers import slurm
from nbtl_search.launchers.slurm import SlurmArray, SlurmSettings, Task
from nbtl_search.launchers.task import WorkerTask


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder for fake programs; `add(name, script)` puts one there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def add(name, script):
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    return add


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """No Slurm on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))


def task(id_, state):
    return Task(id=id_, state=state, node="", reason="None")


def array(tmp_path, **settings):
    return SlurmArray(
        settings=SlurmSettings(**settings),
        task=WorkerTask(arguments=["worker", "x"], environment={}),
        name="nbtl-0123-x",
        folder=tmp_path / "it's a folder; with spaces",
    )


def test_tasks_are_read_with_their_states(cluster):
    cluster(
        "squeue", 'echo "7_0|RUNNING|n1|None"; echo "7_[1-2]|PENDING||Resources|more"; echo odd'
    )
    found = slurm.tasks("nbtl-x")
    assert [(one.id, one.state, one.node, one.reason) for one in found] == [
        ("7_0", "RUNNING", "n1", "None"),
        ("7_[1-2]", "PENDING", "", "Resources|more"),
    ]
    assert all(one.is_live for one in found)
    assert not task("7_0", "COMPLETING").is_live


def test_a_task_that_ends_is_waited_for_as_it_may_be_queued_again(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm, "_LOOK_S", 0.01)
    once = f'test -e {tmp_path}/asked && echo "7_0|PENDING||BeginTime"'
    cluster("squeue", f'{once} || {{ touch {tmp_path}/asked; echo "7_0|COMPLETING|n1|None"; }}')
    assert [found.state for found in slurm.settled("x")] == ["PENDING"]


def test_a_task_that_never_ends_is_not_waited_for_for_ever(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "_SETTLING_S", 0.05)
    monkeypatch.setattr(slurm, "_LOOK_S", 0.01)
    cluster("squeue", 'echo "7_0|COMPLETING|n1|None"; echo "7_1|RUNNING|n1|None"')
    assert [found.state for found in slurm.settled("x")] == ["COMPLETING", "RUNNING"]


def test_a_queue_that_fails_is_one_line(cluster):
    cluster("squeue", 'echo "slurm_load_jobs error: cannot contact controller" >&2; exit 1')
    with pytest.raises(NbtlError, match="cannot contact controller"):
        slurm.tasks("x")


def test_a_queue_that_hangs_is_not_waited_for(cluster, monkeypatch):
    monkeypatch.setattr(slurm, "_TIMEOUT_S", 0.2)
    cluster("squeue", "exec sleep 60")
    started = time.monotonic()
    with pytest.raises(NbtlError, match="must answer within"):
        slurm.tasks("x")
    assert time.monotonic() - started < 5


@pytest.mark.usefixtures("nothing")
def test_without_slurm_it_is_one_line(tmp_path):
    assert not slurm.is_here()
    with pytest.raises(NbtlError, match="'sbatch' must be on PATH"):
        array(tmp_path).script(1)


def test_waiting_tasks_end_first_and_then_the_youngest():
    found = [
        task("9_0", "RUNNING"), task("9_1", "RUNNING"), task("10_0", "RUNNING"),
        task("10_1", "PENDING"), task("3_0", "COMPLETED"),
    ]  # fmt: skip
    assert slurm.surplus(found, n=4) == []
    assert slurm.surplus(found, n=3) == ["10_1"]
    assert slurm.surplus(found, n=1) == ["9_1", "10_0", "10_1"]
    assert slurm.surplus(found, n=0) == ["9_0", "9_1", "10_0", "10_1"]


def test_cancelling_nothing_asks_nothing(cluster, tmp_path):
    cluster("scancel", f'echo "$@" >> {tmp_path}/asked')
    slurm.cancel([])
    assert not (tmp_path / "asked").exists()
    slurm.cancel(["1_0", "1_1"])
    assert (tmp_path / "asked").read_text() == "1_0 1_1\n"


def test_the_script_says_what_the_settings_say(cluster, tmp_path):
    cluster("sbatch", "exit 1")
    cluster("srun", "exit 1")
    script = array(
        tmp_path, partition="gpu", gpus=2, cpus=6, mem_gb=1.5, time_min=90, signal_s=45,
        at_once=3, setup=("module load cuda",), extra={"gres": "x y", "exclusive": True},
    ).script(5)  # fmt: skip
    lines = script.splitlines()
    for line in (
        "#SBATCH --array=0-4%3", "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=6", "#SBATCH --mem=1536M", "#SBATCH --time=90",
        "#SBATCH --signal=USR2@45", "#SBATCH --requeue", "#SBATCH --gres='x y'",
        "#SBATCH --exclusive", "#SBATCH --export=ALL,NBTL_STORAGE=", "module load cuda",
        "#SBATCH --job-name=nbtl-0123-x",
    ):  # fmt: skip
        assert line in lines, script
    assert not (tmp_path / "it's a folder; with spaces").exists(), "nothing was written"
    assert "#SBATCH --array" not in array(tmp_path).script(1)


def test_a_submission_is_an_array_whose_pickles_hold_no_environment(cluster, tmp_path):
    cluster("srun", "exit 1")
    cluster("sbatch", f'cp "$1" {tmp_path}/script; echo "Submitted batch job 41"')
    made = array(tmp_path)
    assert made.submit(2) == "41"
    pickles = sorted(made.folder.glob("*submitted.pkl"))
    assert [path.name for path in pickles] == ["41_0_submitted.pkl", "41_1_submitted.pkl"]
    assert b"PATH" not in pickles[0].read_bytes()


def test_what_sbatch_says_is_passed_on(cluster, tmp_path):
    cluster("srun", "exit 1")
    cluster("sbatch", 'echo "sbatch: error: invalid partition specified: gpuu" >&2; exit 1')
    with pytest.raises(NbtlError, match="invalid partition specified: gpuu"):
        array(tmp_path).submit(1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"partitoin": "x"}, "'partition'"), ({"signal_s": 5}, "signal_s"), ({"gpus": -1}, "gpus")],
)
def test_settings_that_cannot_be_meant_are_refused(settings, says):
    with pytest.raises(SpecError, match=says):
        SlurmSettings.parse(settings)


def test_a_name_tells_studies_of_one_name_apart():
    assert slurm.job_name("x", "a" * 32) != slurm.job_name("x", "b" * 32)


def test_a_signal_between_two_starts_starts_no_third(monkeypatch):
    made = WorkerTask(arguments=["worker"], environment={})
    starts: list[int] = []

    def run_once():
        starts.append(len(starts))
        return 1

    monkeypatch.setattr(made, "_run_once", run_once)
    monkeypatch.setattr("nbtl_search.launchers.task.time.sleep", lambda _s: made._leave())
    old = signal.getsignal(signal.SIGTERM)
    try:
        assert made() == 1
    finally:
        signal.signal(signal.SIGTERM, old)
    assert starts == [0]


def test_what_is_queued_again_leaves_its_process_behind():
    running = WorkerTask(arguments=["worker"], environment={}, cache="$TMPDIR/x")
    running._leaving = True
    again = pickle.loads(pickle.dumps(running))  # noqa: S301
    assert (again._process, again._leaving, again.cache) == (None, False, "$TMPDIR/x")
