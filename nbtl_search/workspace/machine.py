"""Machine of a workspace: is it fit for a search, and what will a study cost on it?

The arguments of the methods are explained at the functions of `nbtl_search.api`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any, Final

from nbtl_search.errors import NbtlError
from nbtl_search.launchers import local
from nbtl_search.spec import Dials, TrainSettings
from nbtl_search.spec.machine import Check, Speed
from nbtl_search.study import checks as database_checks
from nbtl_search.study.cost_estimate import CostEstimate, estimate_cost, slots_by_memory
from nbtl_search.study.store import Study
from nbtl_search.workspace.workspace import Workspace

Child = subprocess.Popen[str]

_MODULE: Final = "nbtl_search.training.speed"
_WORTH_IT: Final = 1.03  # one more slot must add this much, or it only adds waiting
_MOST_SLOTS: Final = 8


@dataclass(frozen=True)
class Machine:
    """The machine that this process runs on, and what a workspace's studies would cost on it."""

    workspace: Workspace

    def doctor(self, name: str | None = None, *, workers: int = 8) -> list[Check]:
        """Return what was looked at: interpreter, devices, disk, database. Nothing is changed."""
        from nbtl_search.training import checks as machine_checks

        home = self.workspace.home
        train, model = TrainSettings(), None
        if name is not None:
            with self.workspace.open_study(name) as study:
                train, model = study.spec.train, study.spec.model
        found = [*machine_checks.machine(home, train=train)]
        if model is not None:
            found.append(machine_checks.weights(model, home=home))
        storage = self.workspace.storage
        return [*found, *database_checks.database(storage, home=home, n_workers=workers)]

    def preflight(
        self, name: str, *, workers: int | None = None, slots_per_gpu: int = 1
    ) -> CostEstimate:
        """Train a few batches of the default recipe; return what the study will cost here."""
        with self.workspace.open_study(name) as study:
            n_workers = workers or local.default_slots(
                n_gpus=len(local.gpus()),
                per_gpu=slots_per_gpu,
                n_threads=study.spec.train.n_threads,
            )
            return estimate_cost(study.spec, self._speed(study), n_workers=n_workers)

    def packed(self, name: str, *, seconds: float = 10.0) -> Iterator[tuple[int, float]]:
        """Yield images per second of 1, 2, ... trainings that share the first GPU (or the CPU)."""
        with self.workspace.open_study(name) as study:
            speed = self._speed(study)
            order = self._order(study, seconds=seconds)
        environment = {"CUDA_VISIBLE_DEVICES": gpus[0]} if (gpus := local.gpus()) else {}
        before = 0.0
        with ExitStack() as stack:
            children: list[Child] = []
            for n_slots in range(1, min(_MOST_SLOTS, slots_by_memory(speed)) + 1):
                children.append(stack.enter_context(_measuring(order, environment)))
                # Building and compiling would count as training: all start together once warm.
                _line(children[-1])
                for child in children:
                    _write(child, "go")
                rate = float(sum(_line(child)["images_per_s"] for child in children))
                yield n_slots, rate
                if rate < _WORTH_IT * before:
                    break
                before = rate

    def _speed(self, study: Study) -> Speed:
        """Measure the default recipe, in a process of its own that gives its memory back."""
        with _measuring(self._order(study), {}) as child:
            return Speed.parse(_line(child)["speed"])

    def _order(self, study: Study, *, seconds: float | None = None) -> dict[str, Any]:
        recipe = study.spec.recipe(Dials()).plain()
        return {"recipe": recipe, "home": str(self.workspace.home), "seconds": seconds}


def best_slots(rates: Sequence[tuple[int, float]]) -> int:
    """Return the fewest slots that come within three per cent of the best throughput."""
    best = max(rate for _, rate in rates)
    return min(n for n, rate in rates if rate * _WORTH_IT >= best)


@contextmanager
def _measuring(order: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Child]:
    """Give a process that measures, with its order; it ends with the block."""
    # Stderr goes to a file, since a pipe that nobody reads fills up and blocks the child.
    with TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", _MODULE],
            env={**os.environ, **environment},  # noqa: TID251  (passed on, not read)
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, who then end the child
        )
        try:
            _write(child, json.dumps(order))
            yield child
        except BrokenPipeError as error:
            complaints.seek(0)
            last = complaints.read().strip().splitlines()[-1:] or [f"exit code {child.wait()}"]
            message = f"a few batches must train before the study starts, got: {last[0]}"
            raise NbtlError(message) from error
        finally:
            child.kill()
            child.communicate()


def _write(child: Child, line: str) -> None:
    assert child.stdin is not None  # noqa: S101
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _line(child: Child) -> dict[str, Any]:
    """Return what the child says next.

    Raises:
        NbtlError: it cannot measure; the message says why.
        BrokenPipeError: it is gone.
    """
    assert child.stdout is not None  # noqa: S101
    line = child.stdout.readline()
    if not line:
        raise BrokenPipeError
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise NbtlError(answer["error"])
    return answer
