"""A cluster's queue as Slurm's own programs show it: which tasks there are, and ending some."""

import getpass
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search.errors import NbtlError

LIVE: Final = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "REQUEUED")
_WAITING: Final = "PENDING"
_ENDING: Final = "COMPLETING"
_FORMAT: Final = "%i|%T|%N|%r"
_PATIENCE_S: Final = 10
_SETTLING_S: Final = 30.0  # Slurm's own limit for a task that was told to end (KillWait)
_LOOK_S: Final = 0.5


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
    order = sorted(live, key=lambda task: (task.state == _WAITING, _numbers(task.id)))
    return [task.id for task in order[n:]]


def _numbers(task_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in task_id.split("_") if part.isdigit())


def _run(command: list[str]) -> str:
    require(command[0])
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]} must answer within {_PATIENCE_S} s, got nothing; try again later"
        raise NbtlError(message) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[-300:]
        message = f"{command[0]} must succeed, got: {said}; see the cluster's state (sinfo)"
        raise NbtlError(message) from error
    return done.stdout
