"""Layer-wise freezing: the first n blocks keep their pre-trained values.

Shermin et al. 2019, arXiv 1903.10150: fine-tune layer by layer to find which ones to freeze. A
frozen block takes no gradient, and its normalisations stay in evaluation mode: running statistics
that follow the target's images would change a block that nothing else changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nbtl_search.errors import SpecError
from nbtl_search.transfer.layers import Block, Layers, Named, kind_of
from nbtl_search.transfer.learning_rates import RateGroup
from nbtl_search.transfer.penalties import L2SP


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


def _trainable(parameters: Named) -> Named:
    return tuple(pair for pair in parameters if pair[1].requires_grad)
