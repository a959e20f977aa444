"""SGD over the three learning-rate groups, and their rates."""

import torch

from nbtl_search.engine.schedule import rate_at
from nbtl_search.spec import Recipe
from nbtl_search.transfer.freezing import trainable_groups
from nbtl_search.transfer.groups import learning_rate_groups
from nbtl_search.transfer.layers import Layers

AUTHORS_WEIGHT_DECAY = 5e-4


def sgd(recipe: Recipe, layers: Layers) -> torch.optim.SGD:
    """Build the optimiser of a recipe; each group keeps its base rate as `base_lr`.

    Frozen parameters are in no group.

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
