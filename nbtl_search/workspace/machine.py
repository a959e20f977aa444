"""Look whether this machine and the database are fit for a search.

Measure before the first trial what a study will cost, and how many workers a GPU can hold.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Final

from nbtl_search.errors import NbtlError
from nbtl_search.launchers import local
from nbtl_search.spec import Dials, TrainSettings
from nbtl_search.spec.machine import Check, Speed
from nbtl_search.study import checks as database_checks
from nbtl_search.study.cost_estimate import Price, price, slots_by_memory
from nbtl_search.study.store import Study
from nbtl_search.workspace.workspace import default_home, opened_study


def doctor(
    name: str | None = None,
    *,
    workers: int = 8,
    home: Path | None = None,
    storage: str | None = None,
) -> list[Check]:
    """Return what was looked at: interpreter, devices, disk, database. Nothing is changed.

    Args:
        name: a study whose device, precision and weights are looked at as well.
        workers: how many are planned, against the server's limit of connections.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study.
    """
    from nbtl_search.training import checks as machine_checks

    home = home or default_home()
    train, model = TrainSettings(), None
    if name is not None:
        with opened_study(name, storage, home) as study:
            train, model = study.spec.train, study.spec.model
    found = [*machine_checks.machine(home, train=train)]
    if model is not None:
        found.append(machine_checks.weights(model, home=home))
    return [*found, *database_checks.database(storage, home=home, n_workers=workers)]


Child = subprocess.Popen[str]

_MODULE: Final = "nbtl_search.training.speed"
_WORTH_IT: Final = 1.03  # one more slot must add this much, or it only adds waiting
_MOST_SLOTS: Final = 8


def preflight(
    name: str,
    *,
    workers: int | None = None,
    slots_per_gpu: int = 1,
    home: Path | None = None,
    storage: str | None = None,
) -> Price:
    """Train a few batches of the default recipe; return what the study will cost here.

    Args:
        name: of the study.
        workers: how many there will be; by default as `launch` would start.
        slots_per_gpu: how many share a GPU.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study.
        SpecError: the budget does not bring one trial to its first rung.
        NbtlError: data or weights cannot be had here.
    """
    home = home or default_home()
    with opened_study(name, storage, home) as study:
        n_workers = workers or default_workers(study, slots_per_gpu=slots_per_gpu)
        return price(study.spec, speed_of(study, home=home), n_workers=n_workers)


def default_workers(study: Study, *, slots_per_gpu: int = 1) -> int:
    """Return how many workers `launch` starts here when it is not told."""
    n_gpus = len(local.gpus())
    n_threads = study.spec.train.n_threads or 1
    return n_gpus * slots_per_gpu or local.default_slots(n_threads=n_threads)


def speed_of(study: Study, *, home: Path) -> Speed:
    """Measure the default recipe, in a process of its own that gives its memory back."""
    with _measuring(_order(study, home), {}) as child:
        return Speed.parse(_line(child)["speed"])


def packed(
    name: str, *, seconds: float = 10.0, home: Path | None = None, storage: str | None = None
) -> Iterator[tuple[int, float]]:
    """Yield images per second of 1, 2, ... trainings that share the first GPU (or the CPU).

    It ends where the memory holds no more, or where one more adds less than three per cent.

    Args:
        name: of the study.
        seconds: how long each number of them trains.
        home: see above.
        storage: see above.

    Raises:
        StudyNotFoundError: no such study.
        NbtlError: data or weights cannot be had here.
    """
    home = home or default_home()
    with opened_study(name, storage, home) as study:
        speed = speed_of(study, home=home)
        order = _order(study, home, seconds=seconds)
    environment = {"CUDA_VISIBLE_DEVICES": gpus[0]} if (gpus := local.gpus()) else {}
    before = 0.0
    with ExitStack() as stack:
        children: list[Child] = []
        for n_slots in range(1, min(_MOST_SLOTS, slots_by_memory(speed)) + 1):
            children.append(stack.enter_context(_measuring(order, environment)))
            _line(children[-1])  # it is warm
            for child in children:
                _write(child, "go")
            rate = float(sum(_line(child)["images_per_s"] for child in children))
            yield n_slots, rate
            if rate < _WORTH_IT * before:
                break
            before = rate


def best_slots(rates: Sequence[tuple[int, float]]) -> int:
    """Return the fewest slots that come within three per cent of the best throughput."""
    best = max(rate for _, rate in rates)
    return min(n for n, rate in rates if rate * _WORTH_IT >= best)


def _order(study: Study, home: Path, *, seconds: float | None = None) -> dict[str, Any]:
    recipe = study.spec.recipe(Dials()).plain()
    return {"recipe": recipe, "home": str(home), "seconds": seconds}


@contextmanager
def _measuring(order: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[Child]:
    """Give a process that measures, with its order; it ends with the block."""
    with TemporaryFile("w+") as complaints:
        child = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            env={**os.environ, **environment},  # noqa: TID251  (passed on, not read)
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
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
