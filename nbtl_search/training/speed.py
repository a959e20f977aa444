"""Speed of a recipe on this machine, by training a few batches of it; nothing is kept.

As a program it reads one order from stdin and prints JSON: the memory goes back with the process,
and several of them at once show what a device gives when they share it.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil
import torch

from nbtl_search.data.loader import Batch
from nbtl_search.data.prepared import prepare
from nbtl_search.errors import NbtlError
from nbtl_search.network.allocator import keep_freed_memory
from nbtl_search.spec import Recipe
from nbtl_search.spec.machine import Speed
from nbtl_search.training.run import Run

_WARM_UP: Final = 2
_UPDATES: Final = 8
_VALIDATION_STEPS: Final = 3
_LONGEST_S: Final = 60.0
_MB: Final = 2**20


def measure(run: Run, *, longest_s: float = _LONGEST_S) -> Speed:
    """Train and validate a few batches; return what they cost.

    Args:
        run: a fresh run, which is of no use afterwards.
        longest_s: stop measuring after so long, with at least one update.

    Raises:
        OutOfMemoryError: not even one image at a time fits.
        DivergedError: a loss is not finite.
    """
    if run.placement.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(run.placement.device)
    started = time.perf_counter()
    seconds: list[float] = []
    for batch in _batches(run):
        seconds.append(_timed_update(run, batch))
        enough = len(seconds) >= _WARM_UP + _UPDATES
        if enough or time.perf_counter() - started > longest_s:
            break
    warm = seconds[_WARM_UP:] or seconds[-1:]
    content = io.BytesIO()
    validation_s = _validation_s(run)
    torch.save(run.state_dict(), content)
    return Speed(
        device=_name(run),
        precision=run.precision,
        update_s=statistics.median(warm),
        update_low_s=min(warm),
        update_high_s=max(warm),
        n_measured=len(warm),
        validation_s=validation_s,
        n_updates=run.n_updates,
        batch_size=run.recipe.train.batch_size,
        micro_batch=run.gradient.micro_batch,
        peak_mb=_peak_mb(run),
        device_mb=_device_mb(run),
        checkpoint_mb=content.tell() / _MB,
    )


def throughput(run: Run, *, seconds: float) -> float:
    """Train for so long; return images per second."""
    n_images, started = 0, time.perf_counter()
    for batch in _batches(run):
        _timed_update(run, batch)
        n_images += len(batch.targets)
        if time.perf_counter() - started > seconds:
            break
    return n_images / (time.perf_counter() - started)


def _batches(run: Run) -> Iterator[Batch]:
    """Yield training batches without end; small studies have few in an epoch."""
    while True:
        run.begin_epoch()
        yield from run.batches()
        run.progress = type(run.progress)(epoch=run.progress.epoch + 1)


def _timed_update(run: Run, batch: Batch) -> float:
    started = time.perf_counter()
    run.update(batch)
    _settle(run)
    return time.perf_counter() - started


def _validation_s(run: Run) -> float:
    """Return the seconds of a whole pass, from its first steps."""
    _settle(run)
    started, n_seen = time.perf_counter(), 0
    for n_steps, score in enumerate(run.scores(), start=1):
        n_seen = score.n_images
        if n_steps == _VALIDATION_STEPS:
            break
    _settle(run)
    return (time.perf_counter() - started) * run.n_validation / n_seen if n_seen else 0.0


def _settle(run: Run) -> None:
    if run.placement.device.type == "cuda":
        torch.cuda.synchronize(run.placement.device)


def _name(run: Run) -> str:
    device = run.placement.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _peak_mb(run: Run) -> float:
    if run.placement.device.type == "cuda":
        return torch.cuda.max_memory_reserved(run.placement.device) / _MB
    return float(psutil.Process().memory_info().rss) / _MB


def _device_mb(run: Run) -> float:
    if run.placement.device.type == "cuda":
        return torch.cuda.get_device_properties(run.placement.device).total_memory / _MB
    return float(psutil.virtual_memory().total) / _MB


def main() -> None:
    """Carry out the order on stdin: {recipe, home, cache, seconds}.

    Without seconds one Speed is printed. With them it says when the run is warm; for each further
    line on stdin it trains for so long, and prints images per second.
    """
    keep_freed_memory()
    order = json.loads(sys.stdin.readline())
    recipe, home = Recipe.parse(order["recipe"]), Path(order["home"])
    cache = None if order.get("cache") is None else Path(order["cache"])
    try:
        run = Run(recipe, prepared=prepare(recipe.data, home=home, cache=cache), home=home)
        if order.get("seconds") is None:
            answer: object = {"speed": measure(run).plain()}
        else:
            throughput(run, seconds=0.0)
            _say({"ready": True})
            while sys.stdin.readline():
                _say({"images_per_s": throughput(run, seconds=order["seconds"])})
            return
    except NbtlError as error:
        answer = {"error": str(error)}
    _say(answer)


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
