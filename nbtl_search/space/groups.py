"""Groups of dials that belong together, and points that are moved back one group at a time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nbtl_search.space.conditions import effective
from nbtl_search.space.rows import Space, impossible
from nbtl_search.spec import Dials

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "new layers": ("reinit_layers",),
    "source classifier": ("source_head",),
    "classifier's start": ("head_start",),
    "frozen blocks": ("frozen_layers",),
    # What counts is lr_high / (1 - momentum): one moved alone would also move that.
    "learning rate": ("lr_high", "momentum"),
    "rates by depth": ("n_low", "lr_low_ratio", "lr_head_ratio", "layer_decay"),
    "decay of the rates": ("decay_updates", "decay_factor"),
    "L2-SP": ("n_l2sp", "alpha"),
    "L2": ("beta",),
    "DELTA": ("delta", "delta_alpha"),
    "distillation": ("distill", "distill_temperature"),
    "DTNH": ("dtnh",),
    "spectral shrinkage": ("bss",),
    "stochastic norm": ("stochnorm_p",),
}
"""Each dial is in one group."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A point without one group: the group's dials have the values that another point has."""

    group: str
    along: tuple[str, ...]
    """Groups that go with it, as the point could not be trained, or would not change, else."""
    dials: Dials


def removals(ours: Dials, theirs: Dials, *, space: Space) -> list[Removal]:
    """Return our point without each group in which it differs from theirs, in `GROUPS`' order.

    Dials without an effect do not count as a difference.

    Args:
        ours: a point that can be trained.
        theirs: another.
        space: whose network it is.
    """
    ours, theirs = effective(ours), effective(theirs)
    differing = [
        group
        for group, names in GROUPS.items()
        if any(getattr(ours, name) != getattr(theirs, name) for name in names)
    ]
    return [_without(group, differing, ours, theirs, space) for group in differing]


def _without(
    group: str, differing: Sequence[str], ours: Dials, theirs: Dials, space: Space
) -> Removal:
    others = [other for other in differing if other != group]
    # DTNH, for example, needs a pull to project: without the last one it goes too.
    for along in ((), *((other,) for other in others), tuple(others)):
        moved = _moved([group, *along], ours, theirs)
        if effective(moved) != ours and _can_be_trained(moved, space):
            return Removal(group=group, along=along, dials=effective(moved))
    return Removal(group=group, along=tuple(others), dials=theirs)


def _moved(groups: Iterable[str], ours: Dials, theirs: Dials) -> Dials:
    names = [name for group in groups for name in GROUPS[group]]
    return Dials.parse({**dict(ours), **{name: getattr(theirs, name) for name in names}})


def _can_be_trained(dials: Dials, space: Space) -> bool:
    return not impossible(dials, n_blocks=space.n_blocks, pretrained=space.pretrained)
