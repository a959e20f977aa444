"""Learning-rate groups: the classifier, the high blocks and the low blocks."""

from typing import NamedTuple

from nbtl_search.spec import Dials
from nbtl_search.transfer.layers import Block, Layers, Named


class RateGroup(NamedTuple):
    """Parameters that share one learning rate."""

    name: str
    lr: float
    parameters: Named


def learning_rate_groups(layers: Layers, dials: Dials) -> list[RateGroup]:
    """Partition all parameters into head, high and low; empty groups are left out.

    The first `n_low` blocks from the input learn at lr_high * lr_low_ratio, the blocks above at
    lr_high and the classifier at lr_high * lr_head_ratio (Plested et al. 2021, section 4.4).
    Batch-norm parameters follow their block, and reinitialised blocks have no rate of their own.
    An `n_low` beyond the number of blocks means all of them.
    """
    low, high = layers.blocks[: dials.n_low], layers.blocks[dials.n_low :]
    groups = [
        RateGroup("head", dials.lr_high * dials.lr_head_ratio, layers.head.parameters),
        RateGroup("high", dials.lr_high, _parameters(high)),
        RateGroup("low", dials.lr_high * dials.lr_low_ratio, _parameters(low)),
    ]
    return [group for group in groups if group.parameters]


def _parameters(blocks: tuple[Block, ...]) -> Named:
    return tuple(pair for block in blocks for pair in block.parameters)
