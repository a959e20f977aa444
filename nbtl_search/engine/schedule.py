"""Learning rates: by epoch the step schedule with timm's meaning and cosine, or by updates.

By epoch, a rate is set once per epoch; epochs count from 0 here.

    warm-up, e < W:  lr(e) = warmup_lr + e (base - warmup_lr) / W
    step:            lr(e) = base * decay_rate ^ floor(e / decay_epochs)
    cosine:          lr(e) = base / 2 * (1 + cos(pi e / epochs))

The warm-up has no prefix: it covers the first epochs and shifts nothing. timm's StepLRScheduler
class does shift by default; its factory and the authors' version do not (warmup_prefix=False).
With `decay_updates` the steps, and the warm-up, are counted in updates instead.
"""

import math

from nbtl_search.spec import Recipe, TrainSettings
from nbtl_search.transfer.decay import decay_in_updates


def warmup_length(train: TrainSettings) -> int:
    """Return W: the warm-up asked for, but at most half of the epochs.

    Otherwise a short run would end before its learning rates were ever reached: 3 epochs of
    warm-up are kept from 6 epochs on, 2 epochs have 1, and a single epoch has none.
    """
    return min(train.warmup_epochs, train.epochs // 2)


def learning_rate(base: float, *, epoch: int, train: TrainSettings) -> float:
    """Return the rate of a group with this base rate during this epoch (from 0)."""
    warmup = warmup_length(train)
    if epoch < warmup:
        return train.warmup_lr + epoch * ((base - train.warmup_lr) / warmup)
    if train.schedule == "cosine":
        return 0.5 * base * (1 + math.cos(math.pi * epoch / train.epochs))
    return base * float(train.decay_rate ** (epoch // train.decay_epochs))


def rate_at(base: float, recipe: Recipe, *, epoch: int, update: int, n_updates: int) -> float:
    """Return the rate of a group with this base rate for one update.

    Args:
        base: the group's own rate.
        recipe: with decay_updates > 0, steps are counted in updates; else in epochs.
        epoch: from 0.
        update: of this epoch, from 0.
        n_updates: in an epoch.
    """
    train, dials = recipe.train, recipe.dials
    if not dials.decay_updates:
        return learning_rate(base, epoch=epoch, train=train)
    return decay_in_updates(
        base,
        update=epoch * n_updates + update,
        decay_updates=dials.decay_updates,
        decay_rate=dials.decay_factor,
        warmup_updates=warmup_length(train) * n_updates,
        warmup_lr=train.warmup_lr,
    )
