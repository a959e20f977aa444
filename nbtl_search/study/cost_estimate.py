"""Cost estimate of a study on this hardware, and whether its budget is enough: plain arithmetic."""

from dataclasses import dataclass
from typing import Final

from nbtl_search.errors import SpecError
from nbtl_search.ledger.promotion import Ladder, ladder_of
from nbtl_search.spec import StudySpec
from nbtl_search.spec.machine import Speed

_CONTEXT_MB: Final = 700.0  # what a CUDA process takes beside its tensors (the runtime, kernels)
_SAFE: Final = 0.9
_KEPT_CHECKPOINTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a study costs. Ranges: rungs promote no more than they want to, or every trial."""

    speed: Speed
    n_workers: int
    trial_s: float
    first_rung: int
    epochs: tuple[int, int]
    slot_h: tuple[float, float]
    hours: tuple[float, float]
    slots_per_gpu: int
    checkpoints_gb: float
    warnings: tuple[str, ...]


def estimate_cost(spec: StudySpec, speed: Speed, *, n_workers: int) -> CostEstimate:
    """Return what the study costs with so many workers.

    Raises:
        SpecError: the budget does not bring one trial to its first rung.
    """
    n_epochs, n_trials = spec.train.epochs, spec.budget.n_trials
    ladder = ladder_of(spec, n_updates=speed.n_updates)
    first = ladder.stop_after(0)
    _refuse_what_ends_before(spec, speed, first)
    least = _epochs_at_least(ladder, n_trials)
    epochs = tuple(_within(spec, count) for count in (least, n_trials * n_epochs))
    slot_h = tuple(count * speed.epoch_s / 3600 for count in epochs)
    return CostEstimate(
        speed=speed,
        n_workers=n_workers,
        trial_s=n_epochs * speed.epoch_s,
        first_rung=first,
        epochs=(epochs[0], epochs[1]),
        slot_h=(slot_h[0], slot_h[1]),
        hours=(slot_h[0] / n_workers, slot_h[1] / n_workers),
        slots_per_gpu=slots_by_memory(speed),
        checkpoints_gb=_n_checkpoints(ladder, n_trials, n_workers) * speed.checkpoint_mb / 1024,
        warnings=tuple(_warnings(spec, speed)),
    )


def slots_by_memory(speed: Speed) -> int:
    """Return how many such trainings the memory of the device holds at once; at least one."""
    return max(1, int(_SAFE * speed.device_mb // (speed.peak_mb + _CONTEXT_MB)))


def _epochs_at_least(ladder: Ladder, n_trials: int) -> int:
    """Return the epochs of the default, and of others of which each rung promotes its share."""
    n_epochs, n_reached, before = ladder.n_epochs, n_trials - 1, 0
    for stop in (*ladder.rungs, ladder.n_epochs):
        n_epochs += n_reached * (stop - before)
        n_reached, before = int(n_reached / ladder.pruning.reduction), stop
    return n_epochs


def _n_checkpoints(ladder: Ladder, n_trials: int, n_workers: int) -> int:
    """Return how many lie on the disk at once: two of each that trains, one of each that pauses."""
    return n_workers * _KEPT_CHECKPOINTS + (n_trials if ladder.rungs else 0)


def _within(spec: StudySpec, n_epochs: int) -> int:
    return n_epochs if spec.budget.epochs is None else min(n_epochs, spec.budget.epochs)


def _limits(spec: StudySpec) -> dict[str, float]:
    """Return the budget's limits of time, in seconds of one slot."""
    given = {"budget.gpu_h": spec.budget.gpu_h, "budget.wall_clock_h": spec.budget.wall_clock_h}
    return {key: 3600 * value for key, value in given.items() if value is not None}


def _refuse_what_ends_before(spec: StudySpec, speed: Speed, rung: int) -> None:
    needed_s = rung * speed.epoch_s
    for key, limit_s in _limits(spec).items():
        if limit_s < needed_s:
            message = (
                f"{key} must bring one trial to its first comparison, epoch {rung}, which takes "
                f"{needed_s / 3600:.3g} h on this {speed.device}, got {limit_s / 3600:.3g} h; "
                "raise it, or train shorter epochs or smaller images"
            )
            raise SpecError(message)
    if spec.budget.epochs is not None and spec.budget.epochs < rung:
        message = (
            f"budget.epochs must bring one trial to its first comparison, epoch {rung}, got "
            f"{spec.budget.epochs}; raise it"
        )
        raise SpecError(message)


def _warnings(spec: StudySpec, speed: Speed) -> list[str]:
    found = [
        f"{key} ends before the first whole trial, which takes "
        f"{spec.train.epochs * speed.epoch_s / 3600:.3g} h"
        for key, limit_s in _limits(spec).items()
        if limit_s < spec.train.epochs * speed.epoch_s
    ]
    if spec.budget.epochs is not None and spec.budget.epochs < spec.train.epochs:
        found.append(
            f"budget.epochs ends before the default, with which all is compared: it has "
            f"{spec.train.epochs}"
        )
    if speed.micro_batch < speed.batch_size:
        found.append(
            f"the memory holds {speed.micro_batch} of {speed.batch_size} images at once; batches "
            "are trained in micro-batches, which gives the same updates and takes longer"
        )
    return found
