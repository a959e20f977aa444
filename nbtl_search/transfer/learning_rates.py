"""Learning-rate groups: the classifier, the high blocks and the low blocks.

With `layer_decay` below 1 each block is a group, and its rate is multiplied by

    layer_decay ^ (blocks from it to the classifier)

(Howard and Ruder 2018, arXiv 1801.06146; of vision transformers Bao et al. 2022, arXiv
2106.08254).

Learning-rate decay counted in updates.

    lr(u) = base * decay_rate ^ floor(u / decay_updates),  u updates done

Plested and Gedeon 2022, "Deep transfer learning for image classification: a survey", arXiv
2205.09904: the rate decays faster the closer the tasks and the smaller the target; a small target
has fewer updates in an epoch, so what to reduce is the number of updates before each step.
"""

from collections.abc import Iterator
from typing import NamedTuple

from nbtl_search.errors import SpecError
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
    head = RateGroup("head", dials.lr_high * dials.lr_head_ratio, layers.head.parameters)
    if dials.layer_decay < 1:
        return [head, *_by_block(layers, dials)]
    groups = [
        head,
        RateGroup("high", dials.lr_high, _parameters(high)),
        RateGroup("low", dials.lr_high * dials.lr_low_ratio, _parameters(low)),
    ]
    return [group for group in groups if group.parameters]


def _by_block(layers: Layers, dials: Dials) -> Iterator[RateGroup]:
    for index, block in enumerate(layers.blocks):
        is_low = index < dials.n_low
        rate = dials.lr_high * (dials.lr_low_ratio if is_low else 1.0)
        decayed = rate * dials.layer_decay ** (layers.n_blocks - index)
        yield RateGroup(f"{'low' if is_low else 'high'} {index}", decayed, block.parameters)


def _parameters(blocks: tuple[Block, ...]) -> Named:
    return tuple(pair for block in blocks for pair in block.parameters)


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
