"""Measure before the first trial what a study will cost, and how many workers a GPU can hold."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from nbtl_search.api.home import default_home
from nbtl_search.api.place import opened_study
from nbtl_search.errors import NbtlError
from nbtl_search.launchers import local
from nbtl_search.spec import Dials
from nbtl_search.spec.speed import Speed
from nbtl_search.study.price import Price, price, slots_by_memory
from nbtl_search.study.store import Study

_MODULE: Final = "nbtl_search.engine.speed"
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
    child = _start(_order(study, home), {})
    return Speed.parse(_answer(child)["speed"])


def packed(
    name: str, *, seconds: float = 10.0, home: Path | None = None, storage: str | None = None
) -> list[tuple[int, float]]:
    """Return images per second of 1, 2, ... trainings that share the first GPU (or the CPU).

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
    found: list[tuple[int, float]] = []
    for n_slots in range(1, min(_MOST_SLOTS, slots_by_memory(speed)) + 1):
        rate = _together(order, environment, n_slots)
        found.append((n_slots, rate))
        if n_slots > 1 and rate < _WORTH_IT * found[-2][1]:
            break
    return found


def best_slots(rates: list[tuple[int, float]]) -> int:
    """Return the fewest slots that come within three per cent of the best throughput."""
    best = max(rate for _, rate in rates)
    return min(n for n, rate in rates if rate * _WORTH_IT >= best)


def _order(study: Study, home: Path, *, seconds: float | None = None) -> dict[str, Any]:
    recipe = study.spec.recipe(Dials()).plain()
    return {"recipe": recipe, "home": str(home), "seconds": seconds}


def _together(order: Mapping[str, Any], environment: Mapping[str, str], n: int) -> float:
    children = [_start(order, environment) for _ in range(n)]
    try:
        for child in children:
            _wait_until_warm(child)
        for child in children:
            assert child.stdin is not None  # noqa: S101
            child.stdin.write("go\n")
            child.stdin.flush()
        return sum(_answer(child)["images_per_s"] for child in children)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _start(order: Mapping[str, Any], environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    child = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        env={**os.environ, **environment},  # noqa: TID251  (passed on, not read)
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdin is not None  # noqa: S101
    child.stdin.write(json.dumps(order) + "\n")
    child.stdin.flush()
    return child


def _wait_until_warm(child: "subprocess.Popen[str]") -> None:
    assert child.stdout is not None  # noqa: S101
    line = child.stdout.readline()
    if line != "ready\n":
        _refuse(line, child)


def _answer(child: "subprocess.Popen[str]") -> dict[str, Any]:
    """Return what the child prints last.

    Raises:
        NbtlError: it could not measure; the message says why.
    """
    printed, complaints = child.communicate()
    lines = printed.splitlines()
    if child.returncode != 0 or not lines or "error" in (answer := json.loads(lines[-1])):
        child.stderr = None
        _refuse(lines[-1] if lines else "", child, complaints)
    return dict(answer)


def _refuse(line: str, child: "subprocess.Popen[str]", complaints: str = "") -> None:
    if line.startswith("{"):
        raise NbtlError(json.loads(line)["error"])
    if child.stderr is not None:
        complaints = child.communicate()[1]
    last = complaints.strip().splitlines()[-1:] or [f"exit code {child.wait()}"]
    message = f"a few batches must train before the study starts, got: {last[0]}"
    raise NbtlError(message)
