"""Restart policy of workers and trainers: when to start again, after which pause, when no more.

============================  ==========================  =======================================
what ends                     who starts it again         rule
============================  ==========================  =======================================
a worker on this machine      `launchers.local`           `WORKER`
a worker of a Slurm task      `launchers.task`            `WORKER`
a pod                         Kubernetes itself           `KUBERNETES_RESTARTS`, its own pauses
a trainer that never opened   `worker.supervisor`         `TRAINER`
============================  ==========================  =======================================

A worker that ends with `errors.EXIT_CODE` was refused: none of them starts it again. What happens
to a *trial* whose trainer or worker died is another rule, which the ledger keeps for all machines
(`ledger.leases`), and a database that does not answer ends nobody: it is waited for.
"""

from dataclasses import dataclass
from typing import Final, final


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """How often in a row a process may die, and how long to wait before it is started again."""

    max_in_a_row: int
    pause_s: float
    """The pause doubles with each death in a row, from this one on."""
    healthy_after_s: float
    """A process that lived longer was healthy: its death begins the count anew."""


WORKER: Final = RestartPolicy(max_in_a_row=5, pause_s=0.5, healthy_after_s=60.0)
# No pause, since opening data and weights takes seconds anyway; and no life is long enough to be
# healthy, since what dies after minutes of loading has still not answered.
TRAINER: Final = RestartPolicy(max_in_a_row=8, pause_s=0.0, healthy_after_s=float("inf"))
KUBERNETES_RESTARTS: Final = 20
"""Of one pod: more than of a worker, because an index that gave up is not started by anyone."""

DATABASE_PATIENCE_S: Final = 86_400
"""So long a worker that was launched waits for its database, instead of dying and being counted."""


@final
class Restarts:
    """The deaths in a row of one process; the caller owns the process and the clock."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._in_a_row = 0

    def after_death(self, *, lived_s: float) -> float | None:
        """Count a death; return the pause before the next start, or None to give up."""
        # Counted in a row, not in all: a search of weeks outlives many bad nights of a machine.
        self._in_a_row = 0 if lived_s > self._policy.healthy_after_s else self._in_a_row + 1
        if self._in_a_row > self._policy.max_in_a_row:
            return None
        return self._policy.pause_s * 2.0**self._in_a_row

    def forgive(self) -> None:
        """Begin the count anew: the process has done what it is for."""
        self._in_a_row = 0
