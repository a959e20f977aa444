"""Layer-wise freezing: the first n blocks keep their pre-trained values.

Shermin et al. 2019, arXiv 1903.10150: fine-tune layer by layer to find which ones to freeze. A
frozen block takes no gradient, and its normalisations stay in evaluation mode: running statistics
that follow the target's images would change a block that nothing else changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.errors import SpecError
from nbtl_search.transfer.groups import RateGroup
from nbtl_search.transfer.layers import Block, Layers, Named, kind_of
from nbtl_search.transfer.penalties import L2SP
from nbtl_search.transfer.source import evaluating


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The frozen blocks of a network."""

    blocks: tuple[Block, ...]

    def hold(self) -> None:
        """Put the normalisations of the frozen blocks into evaluation mode.

        Call it after every `model.train()`, which puts all modules into training mode.
        """
        for block in self.blocks:
            for _, module in block.modules:
                # Only these: what owns a parameter may be the whole model (a class token).
                if kind_of(module, "weight") == "norm":
                    module.eval()


def freeze(layers: Layers, n: int, *, reinit_layers: int = 1) -> Frozen:
    """Stop the gradients of the first n blocks, in place, and return these blocks.

    Build the groups and the penalty from all layers, as counts of blocks are from the input, and
    then pass them through `trainable_groups` and `trainable_penalty`.

    Raises:
        SpecError: n is out of range; see `check_frozen`. Nothing is changed then.
    """
    check_frozen(n, n_blocks=layers.n_blocks, reinit_layers=reinit_layers)
    frozen = Frozen(blocks=layers.blocks[:n])
    for block in frozen.blocks:
        for _, parameter in block.parameters:
            parameter.requires_grad = False
            parameter.grad = None
    frozen.hold()
    return frozen


def check_frozen(n: int, *, n_blocks: int, reinit_layers: int) -> None:
    """Check that no frozen block is reinitialised: 0 <= n <= n_blocks - (reinit_layers - 1).

    Raises:
        SpecError: it is not so.
    """
    most = n_blocks - (reinit_layers - 1)
    if not 0 <= n <= most:
        message = (
            f"0 <= frozen_layers <= n_blocks - (reinit_layers - 1) = {most}, as a reinitialised "
            f"block must learn, got {n}; freeze fewer blocks, or reinitialise fewer"
        )
        raise SpecError(message)


def trainable_groups(groups: Iterable[RateGroup]) -> list[RateGroup]:
    """Return the groups without frozen parameters; groups that become empty are left out."""
    kept = (group._replace(parameters=_trainable(group.parameters)) for group in groups)
    return [group for group in kept if group.parameters]


def trainable_penalty(penalty: L2SP) -> L2SP:
    """Return the penalty without frozen parameters: no pull moves what is frozen."""
    return replace(
        penalty,
        sp=tuple(pull for pull in penalty.sp if pull.parameter.requires_grad),
        l2=tuple(pull for pull in penalty.l2 if pull.parameter.requires_grad),
    )


def runs_without_gradient(
    model: nn.Module, frozen: Frozen, images: Float[Tensor, "batch colours height width"]
) -> bool:
    """Tell whether nothing that learns comes before a frozen module in the forward pass.

    Then autograd records nothing below the first block that learns, as neither the images nor
    these parameters need gradients: the prefix runs as under `torch.no_grad`. It is found out by
    one forward pass, in evaluation mode, since only that knows the order of a model's blocks.
    """
    reached: list[bool] = []

    def note(_module: nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        tensors = (value for value in inputs if isinstance(value, Tensor))
        reached.append(any(value.requires_grad for value in tensors))

    handles = [
        module.register_forward_hook(note)
        for block in frozen.blocks
        for _, module in block.modules
        if not any(parameter.requires_grad for parameter in module.parameters())
    ]
    try:
        with evaluating(model), torch.enable_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return not any(reached)


def _trainable(parameters: Named) -> Named:
    return tuple(pair for pair in parameters if pair[1].requires_grad)
