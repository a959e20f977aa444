"""Cost estimate of a study on this hardware, and whether its budget is enough: plain arithmetic."""

from dataclasses import dataclass
from typing import Final

from nbtl_search.errors import SpecError
from nbtl_search.spec import StudySpec
from nbtl_search.spec.machine import Speed
from nbtl_search.study import pruning

_CONTEXT_MB: Final = 700.0  # what a CUDA process takes beside its tensors (the runtime, kernels)
_SAFE: Final = 0.9
_KEPT_CHECKPOINTS: Final = 2


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a study costs. Ranges: all trials stopped at the first rung, none stopped at all."""

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
    stops = pruning.rungs(spec.search.pruning, epochs=n_epochs, n_updates=speed.n_updates)
    first = stops[0] if stops else n_epochs
    _refuse_what_ends_before(spec, speed, first)
    n_known = min(n_trials, len(spec.search.known))  # known recipes are never stopped
    low = n_known * n_epochs + (n_trials - n_known) * first
    epochs = tuple(_within(spec, count) for count in (low, n_trials * n_epochs))
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
        checkpoints_gb=n_workers * _KEPT_CHECKPOINTS * speed.checkpoint_mb / 1024,
        warnings=tuple(_warnings(spec, speed)),
    )


def slots_by_memory(speed: Speed) -> int:
    """Return how many such trainings the memory of the device holds at once; at least one."""
    return max(1, int(_SAFE * speed.device_mb // (speed.peak_mb + _CONTEXT_MB)))


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
    if speed.micro_batch < speed.batch_size:
        found.append(
            f"the memory holds {speed.micro_batch} of {speed.batch_size} images at once; batches "
            "are trained in micro-batches, which gives the same updates and takes longer"
        )
    return found
