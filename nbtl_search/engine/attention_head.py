"""The head that channel importance is measured with: linear, on pooled features that stay.

Li et al. 2019, arXiv 1901.09229, released code: ten epochs of SGD at 0.01, a tenth from the sixth
on. The backbone is frozen in evaluation mode, so that its features are those of every epoch.
"""

from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn
from torch.nn import functional

from nbtl_search.engine.randomness import derive_seed, seeded
from nbtl_search.errors import DivergedError

SETTINGS: Final[dict[str, Any]] = {
    "epochs": 10,
    "batch_size": 32,
    "lr": 0.01,
    "momentum": 0.9,
    "decay_epochs": 6,
    "decay_rate": 0.1,
}


def trained_head(
    features: Float32[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    *,
    n_classes: int,
    seed: int,
) -> Float32[np.ndarray, "c d_1"]:
    """Return the weight of a linear classifier of some features, its bias as last column.

    The rate of epoch e, from 0, is 0.01 * 0.1^(e // 6); the loss is the cross-entropy.

    Raises:
        DivergedError: a weight is not finite.
    """
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    with seeded(derive_seed("initialise", seed)):
        head = nn.Linear(x.shape[1], n_classes)
    optimiser = torch.optim.SGD(head.parameters(), lr=SETTINGS["lr"], momentum=SETTINGS["momentum"])
    schedule = torch.optim.lr_scheduler.StepLR(
        optimiser, SETTINGS["decay_epochs"], gamma=SETTINGS["decay_rate"]
    )
    generator = torch.Generator().manual_seed(derive_seed("order", seed))
    for _ in range(SETTINGS["epochs"]):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(SETTINGS["batch_size"]):
            optimiser.zero_grad()
            functional.cross_entropy(head(x[rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
    found: Float32[np.ndarray, "c d_1"] = torch.cat(
        [head.weight.detach(), head.bias.detach()[:, None]], dim=1
    ).numpy()
    _check_finite(found, features)
    return found


def linear_head(rows: Float32[np.ndarray, "c d_1"]) -> nn.Module:
    """Return the classifier of pooled features that `trained_head` gave."""
    weight, bias = torch.from_numpy(rows).tensor_split([rows.shape[1] - 1], dim=1)
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))
    linear.load_state_dict({"weight": weight, "bias": bias[:, 0]})
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(requires_grad=False)


def _check_finite(
    found: Float32[np.ndarray, "c d_1"], features: Float32[np.ndarray, "n d"]
) -> None:
    if not np.isfinite(found).all():
        message = (
            "the head that channel importance is measured with must be finite after 10 epochs at "
            f"rate {SETTINGS['lr']}, got one that is not from features up to "
            f"{np.abs(features).max():.3g}; use other weights, or dials.delta = 'plain'"
        )
        raise DivergedError(message)
