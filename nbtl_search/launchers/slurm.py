"""Slurm: workers as an array of jobs, and the queue of the tasks that are theirs.

submitit submits an array with one task per worker and has a task queued again that must go. The
queue is asked by Slurm's own programs, as submitit only knows the jobs of its own process. It is
imported where workers are submitted: it sets up logging anew, which `status` must not do.
"""

import getpass
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, final

from pydantic import Field

from nbtl_search.errors import NbtlError
from nbtl_search.spec import Value

if TYPE_CHECKING:
    from nbtl_search.launchers.task import WorkerTask

LIVE: Final = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED")
_WAITING: Final = "PENDING"
_ENDING: Final = "COMPLETING"
_FORMAT: Final = "%i|%T|%N|%r"
_TIMEOUT_S: Final = 10
_SETTLING_S: Final = 30.0  # Slurm's own limit for a task that was told to end (KillWait)
_LOOK_S: Final = 0.5
_REQUEUES: Final = 1_000  # a worker may reach its time limit as often as the study needs


class SlurmSettings(Value):
    """What a worker asks of the cluster; one TOML file (`workers/slurm.toml`)."""

    workers: Annotated[int, Field(ge=0)] = Field(1, description="tasks of the array")
    at_once: Annotated[int, Field(ge=1)] = Field(256, description="tasks that may run at once")
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time_min: Annotated[int, Field(ge=1)] = Field(1440, description="limit of a job; queued again")
    signal_s: Annotated[int, Field(ge=30)] = Field(
        120, description="how long before its end a job is told, to write a checkpoint and go"
    )
    gpus: Annotated[int, Field(ge=0)] = Field(1, description="per worker; 0 = a CPU worker")
    cpus: Annotated[int, Field(ge=1)] = Field(4, description="per worker: one trains, others load")
    mem_gb: Annotated[float, Field(gt=0)] = 16.0
    python: str | None = Field(None, description="interpreter on the nodes; by default this one")
    cache: str | None = Field(
        None,
        description="folder on a node's own disk for decoded images, with its $VARIABLES",
    )
    setup: tuple[str, ...] = Field((), description="shell lines before the worker, such as modules")
    extra: Mapping[str, str | int | bool] = Field({}, description="further options of sbatch")


@final
@dataclass(frozen=True, kw_only=True)
class SlurmArray:
    """The workers of one study on a cluster, ready to be submitted."""

    settings: SlurmSettings
    task: "WorkerTask"
    name: str
    folder: Path
    """On the shared file system: scripts, pickles of the task, and what the tasks print."""

    def script(self, n: int) -> str:
        """Return the batch script of an array of so many workers, and write nothing."""
        executor = self._executor()
        if n > 1:
            executor.parameters["map_count"] = n  # as submitit does when it submits an array
        # Private, as submitit has no public way to show a script without submitting it.
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")  # noqa: SLF001
        return text

    def submit(self, n: int) -> str:
        """Submit so many workers; return the id of the job (of the array, where n > 1).

        Raises:
            NbtlError: Slurm refuses; the message says what it said.
        """
        from submitit.core.utils import (  # noqa: PLC0415  (see the top)
            FailedJobError,
            FailedSubmissionError,
        )

        executor = self._executor()
        try:
            with executor.batch():
                jobs = [executor.submit(self.task) for _ in range(n)]
        except (FailedJobError, FailedSubmissionError) as error:
            said = " ".join(str(error).split())[-400:]
            message = f"sbatch must accept the workers, got: {said}; see the Slurm settings"
            raise NbtlError(message) from error
        return str(jobs[0].job_id).partition("_")[0]

    def _executor(self) -> Any:
        """Return submitit's executor; making one writes nothing.

        Raises:
            NbtlError: there is no Slurm here.
        """
        require("sbatch")
        require("srun")
        import submitit  # noqa: PLC0415  (see the top)

        # -P: a task begins in the folder it was submitted from, whose files are no modules of ours.
        python = self.settings.python or f"{shlex.quote(sys.executable)} -P"
        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=_REQUEUES, python=python)
        executor.update_parameters(**_parameters(self.settings, self.name))
        return executor


def _parameters(settings: SlurmSettings, name: str) -> dict[str, Any]:
    given = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "gpus_per_node": settings.gpus or None,
        "setup": list(settings.setup) or None,
    }
    # Slurm keeps a job's environment, and shows it: an address with a password must not come along.
    extra: dict[str, Any] = {"export": "ALL,NBTL_STORAGE=", "requeue": True}
    return {key: value for key, value in given.items() if value is not None} | {
        "job_name": name,
        "time": settings.time_min,
        "mem": f"{round(1024 * settings.mem_gb)}M",
        "cpus_per_task": settings.cpus,
        "signal_delay_s": settings.signal_s,
        "array_parallelism": settings.at_once,
        "stderr_to_stdout": True,
        "additional_parameters": extra | dict(settings.extra),
    }


# -- the queue -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task in the queue."""

    id: str
    state: str
    node: str
    reason: str

    @property
    def is_live(self) -> bool:
        """Whether it runs, or will."""
        return self.state in LIVE


def job_name(study: str, uid: str) -> str:
    """Return the name of a study's jobs, by which they are found also where nobody noted them."""
    return f"nbtl-{uid[:8]}-{study}"


def require(program: str) -> None:
    """Make sure that one of Slurm's programs is here.

    Raises:
        NbtlError: it is not.
    """
    if shutil.which(program) is None:
        message = (
            f"{program!r} must be on PATH for --slurm, got none; run this on a node from which "
            "jobs are submitted"
        )
        raise NbtlError(message)


def is_here() -> bool:
    """Tell whether the queue can be asked from this machine."""
    return shutil.which("squeue") is not None


def tasks(name: str) -> list[Task]:
    """Return the tasks of our jobs with this name that the queue still knows.

    Raises:
        NbtlError: the queue does not answer.
    """
    # Found by name, not by ids we noted: the jobs are there also where their submitter died before
    # it could note them, or noted them in a database that was restored since.
    command = ["squeue", "--noheader", "--array", f"--name={name}", f"--user={getpass.getuser()}"]
    lines = _run([*command, f"--format={_FORMAT}"]).splitlines()
    rows = [line.strip().split("|", 3) for line in lines if line.count("|") >= 3]
    return [Task(id=a, state=b, node=c, reason=d) for a, b, c, d in rows]


def settled(name: str) -> list[Task]:
    """Return the tasks when none is ending any more: one that is may be queued again.

    A task that will not end is not waited for any longer than half a minute.

    Raises:
        NbtlError: the queue does not answer.
    """
    # Counted while one is ending, a task that is then queued again would be one worker too many.
    deadline = time.monotonic() + _SETTLING_S
    while True:
        found = tasks(name)
        if time.monotonic() > deadline or not any(task.state == _ENDING for task in found):
            return found
        time.sleep(_LOOK_S)


def cancel(ids: Sequence[str]) -> None:
    """End these tasks; a running worker gets SIGTERM and checkpoints.

    Raises:
        NbtlError: the queue does not answer.
    """
    if ids:
        _run(["scancel", *ids])


def surplus(found: Sequence[Task], *, n: int) -> list[str]:
    """Return the ids of the tasks to end so that n are left: waiting ones, then the youngest."""
    live = [task for task in found if task.is_live]
    # The oldest stay: they are the likeliest to be in the middle of a trial.
    order = sorted(live, key=lambda task: (task.state == _WAITING, _numbers(task.id)))
    return [task.id for task in order[n:]]


def _numbers(task_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in task_id.split("_") if part.isdigit())


def _run(command: list[str]) -> str:
    require(command[0])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]} must answer within {_TIMEOUT_S} s, got nothing; try again later"
        raise NbtlError(message) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[-300:]
        message = f"{command[0]} must succeed, got: {said}; see the cluster's state (sinfo)"
        raise NbtlError(message) from error
    return done.stdout
