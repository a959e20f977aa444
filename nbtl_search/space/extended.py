"""The space `extended`: every method is a dial, so that the sampler finds which are needed.

Ranges reach around the values of the methods' own authors: DELTA 0.01 (Li et al. 2019, arXiv
1901.09229), spectral shrinkage 0.001 (Chen et al. 2019), stochastic normalisation 0.5 (Kou et al.
2020), distillation 4 at temperature 3. The effective rate's range is the paper's at momentum 0.9.

At least one block learns, as DELTA, distillation and most others act on what is below a classifier
that is new; linear probing is `frozen_layers = "all"`, in a recipe or a row. The top of `n_l2sp` is
all there are, a kept source classifier with them.

Steps of decay are counted in updates, whatever a run's length, and their factors multiply: 0.5
every 30 updates leaves 1e-6 of the rate after 600. So steps are at least 60 updates apart, and none
is below 0.5.

A switch has few options, because a sampler that models categories begins with all of them equally
likely. In start-up points a method is off in three of four, so that of the seven methods two are
on, on average; DTNH, which needs another method to act on, in one of two.
"""

from typing import Final

from nbtl_search.space.conditions import CONDITIONS
from nbtl_search.space.domains import Choice, Domain, Float, Int
from nbtl_search.space.named import HEAD_RATIO, LOW_RATIO, STRENGTH, low_blocks, new_layers
from nbtl_search.space.rows import Limit, Space, SpaceRow

OFF: Final = 0.75
EFFECTIVE_RATE: Final = Float(low=5e-3, high=0.5, log=True)


def extended(n_blocks: int) -> Space:
    """Return the paper's dials and those of every other method."""
    domains: dict[str, Domain] = {
        "source_head": Choice(options=("replace", "keep"), usual=OFF),
        "reinit_layers": new_layers(n_blocks),
        "frozen_layers": Int(low=0, high=n_blocks - 1, usual=OFF),
        "effective_lr": EFFECTIVE_RATE,
        "momentum": Float(low=0.0, high=0.95),
        "lr_head_ratio": HEAD_RATIO,
        "n_low": low_blocks(n_blocks),
        "lr_low_ratio": LOW_RATIO,
        "n_l2sp": Int(low=0, high=n_blocks + 1),
        "alpha": STRENGTH,
        "beta": STRENGTH,
        "delta": Choice(options=("off", "plain", "attention"), usual=OFF),
        "delta_alpha": STRENGTH,
        "distill": Choice(options=(0.0, 1.0, 4.0), usual=OFF),
        "distill_temperature": Float(low=1.0, high=5.0),
        "dtnh": Choice(options=("off", "conflict", "always"), usual=0.5),
        "bss": Choice(options=(0.0, 1e-3, 1e-2), usual=OFF),
        "stochnorm_p": Choice(options=(1.0, 0.5), usual=OFF),
        "decay_updates": Choice(options=(0, 60, 240, 960), usual=OFF),
        "decay_factor": Float(low=0.5, high=0.97),
    }
    rows = tuple(
        SpaceRow(name=name, domain=domain, when=CONDITIONS.get(name))
        for name, domain in domains.items()
    )
    limits = (Limit(dial="frozen_layers"), Limit(dial="n_l2sp"))
    return Space(n_blocks=n_blocks, rows=rows, limits=limits)
