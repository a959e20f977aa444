"""Optimiser: SGD or AdamW over the learning-rate groups, and their rates at each update.

By epoch, a rate is set once per epoch; epochs count from 0 here.

    warm-up, e < W:  lr(e) = warmup_lr + e (base - warmup_lr) / W
    step:            lr(e) = base * decay_rate ^ floor(e / decay_epochs)
    cosine:          lr(e) = base / 2 * (1 + cos(pi e / epochs))

One cycle (Smith and Topin 2018, arXiv 1708.07120) is set at each update u of U, with half cosines
between base / 25 at u = 0, base at u = rise U - 1, and base / 250,000 at u = U - 1.

The warm-up has no prefix: it covers the first epochs and shifts nothing. timm's StepLRScheduler
class does shift by default; its factory and the authors' version do not (warmup_prefix=False).
With `decay_updates` the steps, and the warm-up, are counted in updates instead.
"""

import math

import torch

from nbtl_search.spec import Recipe, TrainSettings
from nbtl_search.transfer.freezing import trainable_groups
from nbtl_search.transfer.layers import Layers
from nbtl_search.transfer.learning_rates import decay_in_updates, learning_rate_groups

AUTHORS_WEIGHT_DECAY = 5e-4
# AdamW's: torch's 0.999 remembers a thousand updates, and many runs here have a hundred.
_BETA2 = 0.99
_RISES = 25.0  # times, from the start of one cycle to its top, as torch's OneCycleLR
_FALLS = 1e4  # times, from the start of one cycle to its end


def warmup_length(train: TrainSettings) -> int:
    """Return W: the warm-up asked for, but at most half of the epochs.

    Otherwise a short run would end before its learning rates were ever reached: 3 epochs of
    warm-up are kept from 6 epochs on, 2 epochs have 1, and a single epoch has none.
    """
    return min(train.warmup_epochs, train.epochs // 2)


def learning_rate(
    base: float, *, epoch: int, train: TrainSettings, start: float | None = None
) -> float:
    """Return the rate during this epoch (from 0), of a schedule that is counted in epochs.

    The warm-up begins at `start`, by default at `train.warmup_lr`.
    """
    warmup = warmup_length(train)
    if epoch < warmup:
        first = train.warmup_lr if start is None else start
        return first + epoch * ((base - first) / warmup)
    if train.schedule == "cosine":
        return _between(base, 0.0, epoch / train.epochs)
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
    done, n_all = epoch * n_updates + update, train.epochs * n_updates
    cyclic = train.schedule == "one_cycle"
    start = _warmup_start(base, recipe)
    if not dials.decay_updates:
        if cyclic:
            return one_cycle(base, update=done, n_updates=n_all, rise=train.rise)
        return learning_rate(base, epoch=epoch, train=train, start=start)
    return decay_in_updates(
        base,
        update=done,
        decay_updates=dials.decay_updates,
        decay_rate=dials.decay_factor,
        warmup_updates=round(train.rise * n_all) if cyclic else warmup_length(train) * n_updates,
        warmup_lr=base / _RISES if cyclic else start,
    )


def _warmup_start(base: float, recipe: Recipe) -> float:
    """Return where a group's warm-up begins: never above its own rate where rates are small.

    SGD's groups without decay begin at the same rate, as in the released code.
    """
    train = recipe.train
    if recipe.dials.layer_decay < 1 or train.optimiser == "adamw":
        return min(train.warmup_lr, base)
    return train.warmup_lr


def one_cycle(base: float, *, update: int, n_updates: int, rise: float) -> float:
    """Return the rate of a group with this base rate for one update of a run, from 0."""
    top, last = max(0.0, rise * n_updates - 1), n_updates - 1
    start = base / _RISES
    if update < top:
        return _between(start, base, update / top)
    if last <= top:
        return base
    return _between(base, start / _FALLS, (update - top) / (last - top))


def _between(start: float, end: float, share: float) -> float:
    """Return the value at this share of half a cosine from start to end."""
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def optimiser_of(recipe: Recipe, layers: Layers) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe; each group keeps its base rate as `base_lr`.

    Frozen parameters are in no group. The dial `momentum` is AdamW's beta1.

    Weight decay is on every parameter, batch norm and biases included, as in the released code.
    It is 0 unless set, because the penalty carries all decay; with compat = "authors" it is 5e-4
    on top of the penalty, as there.
    """
    groups = [
        {
            "params": [parameter for _, parameter in group.parameters],
            "name": group.name,
            "lr": group.lr,
            "base_lr": group.lr,
        }
        for group in trainable_groups(learning_rate_groups(layers, recipe.dials))
    ]
    momentum = recipe.dials.momentum
    if recipe.train.optimiser == "adamw":
        return torch.optim.AdamW(
            groups,
            lr=recipe.dials.lr_high,
            betas=(momentum, _BETA2),
            weight_decay=weight_decay(recipe),
            foreach=True,
        )
    return torch.optim.SGD(
        groups,
        lr=recipe.dials.lr_high,
        momentum=momentum,
        # torch refuses Nesterov's form without momentum, where it would change nothing.
        nesterov=recipe.train.nesterov and momentum > 0,
        weight_decay=weight_decay(recipe),
        foreach=True,
    )


def weight_decay(recipe: Recipe) -> float:
    """Return the optimiser's own weight decay: what is set, or what the compat mode has."""
    if recipe.train.weight_decay is not None:
        return recipe.train.weight_decay
    return AUTHORS_WEIGHT_DECAY if recipe.compat == "authors" else 0.0


def set_rates(
    optimiser: torch.optim.Optimizer, recipe: Recipe, *, epoch: int, update: int, n_updates: int
) -> None:
    """Give every group its rate for this update of this epoch (both from 0)."""
    for group in optimiser.param_groups:
        group["lr"] = rate_at(
            group["base_lr"], recipe, epoch=epoch, update=update, n_updates=n_updates
        )
