"""Learning-rate decay counted in updates.

    lr(u) = base * decay_rate ^ floor(u / decay_updates),  u updates done

Plested and Gedeon 2022, "Deep transfer learning for image classification: a survey", arXiv
2205.09904: the rate decays faster the closer the tasks and the smaller the target; a small target
has fewer updates in an epoch, so what to reduce is the number of updates before each step.
"""

from nbtl_search.errors import SpecError


def decay_in_updates(
    base: float,
    *,
    update: int,
    decay_updates: int,
    decay_rate: float,
    warmup_updates: int = 0,
    warmup_lr: float = 1e-4,
) -> float:
    """Return the rate of a group with this base rate for the update with this index (from 0).

    The warm-up is linear from `warmup_lr` over the first updates, and shifts no step.

    Raises:
        SpecError: an update below 0, or a step of less than one update.
    """
    if update < 0 or decay_updates < 1:
        message = (
            f"update >= 0 and decay_updates >= 1, got {update} and {decay_updates}; choose others"
        )
        raise SpecError(message)
    if update < warmup_updates:
        return warmup_lr + update * ((base - warmup_lr) / warmup_updates)
    return base * float(decay_rate ** (update // decay_updates))
