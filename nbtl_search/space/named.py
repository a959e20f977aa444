"""The named spaces of the paper and of usual practice.

A layer is a block of the network or its head, as in Plested, Shen and Gedeon (2021, arXiv
2107.08585, section 4.3). Ranges are the grids of their tables 2-6, made continuous.
"""

from typing import Final

from nbtl_search.space.conditions import When
from nbtl_search.space.domains import Choice, Float, Int
from nbtl_search.space.rows import Space, SpaceRow

REFERENCE_BLOCKS: Final = 22  # of Inception-v4, whose layer counts the paper prints
STRENGTH: Final = Float(low=1e-5, high=1e-1, log=True)
RATE: Final = Float(low=5e-4, high=5e-2, log=True)
HEAD_RATIO: Final = Float(low=0.1, high=10, log=True)
LOW_RATIO: Final = Float(low=0.04, high=1, log=True)


def binary(n_blocks: int) -> Space:
    """Return the usual practice: one new layer, one rate, and L2 or L2-SP on everything."""
    return Space(
        n_blocks=n_blocks,
        rows=(
            SpaceRow(name="lr_high", domain=RATE),
            SpaceRow(name="n_l2sp", domain=Choice(options=(0, n_blocks))),
            SpaceRow(name="alpha", domain=STRENGTH, when=When(dial="n_l2sp")),
            SpaceRow(name="beta", domain=STRENGTH),
        ),
        fixed={"reinit_layers": 1, "n_low": 0},
    )


def paper(n_blocks: int) -> Space:
    """Return the paper's dials: how many layers are new, slow, and pulled to their old weights."""
    return Space(
        n_blocks=n_blocks,
        rows=(
            SpaceRow(name="reinit_layers", domain=new_layers(n_blocks)),
            SpaceRow(name="lr_high", domain=RATE),
            SpaceRow(name="lr_head_ratio", domain=HEAD_RATIO),
            SpaceRow(name="n_low", domain=low_blocks(n_blocks)),
            SpaceRow(name="lr_low_ratio", domain=LOW_RATIO, when=When(dial="n_low")),
            SpaceRow(name="n_l2sp", domain=Int(low=0, high=n_blocks)),
            SpaceRow(name="alpha", domain=STRENGTH, when=When(dial="n_l2sp")),
            SpaceRow(name="beta", domain=STRENGTH),
        ),
    )


def new_layers(n_blocks: int) -> Int:
    """Return the paper's numbers of reinitialised layers: 1 to 3, as far as there are so many."""
    return Int(low=1, high=min(3, n_blocks + 1))


def low_blocks(n_blocks: int) -> Int:
    """Return the numbers of blocks at the low rate: none to 18 of Inception-v4's 22."""
    return Int(low=0, high=round(18 * n_blocks / REFERENCE_BLOCKS))
