"""Which combinations of dials cannot be trained, and why."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from nbtl_search.space.conditions import PULLED
from nbtl_search.space.rows import Limit
from nbtl_search.spec import Dials

OF_SOURCE: Final = ("source_head", "frozen_layers", "delta", "distill")
"""What keeps, pulls to or learns from pre-trained weights, and so needs some."""


def impossible(dials: Dials, *, n_blocks: int, pretrained: bool = True) -> list[str]:
    """Return why this combination cannot be trained, one sentence each; none where it can.

    L2-SP that reaches into reinitialised blocks is not among them: it covers all blocks that are
    pre-trained then.

    Args:
        dials: to judge.
        n_blocks: of the network, a kept source classifier not counted.
        pretrained: whether there are pre-trained weights.
    """
    values = dict(dials)
    reasons = [*_contradictions(dials, values, n_blocks)]
    return reasons if pretrained else [*reasons, *_without_source(dials)]


def beyond(limit: Limit, dials: Dials, *, n_blocks: int) -> list[str]:
    """Return why a count goes too far into the network, if it does, as `impossible` does."""
    values = dict(dials)
    most = limit.most(values, n_blocks=n_blocks)
    if values[limit.dial] <= most:
        return []
    what = "must learn" if limit.dial == "frozen_layers" else "has no weights to be pulled to"
    message = (
        f"{limit} = {most}, as a reinitialised block {what}, got {values[limit.dial]} with "
        f"reinit_layers = {dials.reinit_layers}; take fewer blocks, or reinitialise fewer"
    )
    return [message]


def _contradictions(dials: Dials, values: Mapping[str, Any], n_blocks: int) -> Iterator[str]:
    yield from beyond(Limit(dial="frozen_layers"), dials, n_blocks=n_blocks)
    if dials.source_head == "keep" and dials.reinit_layers > 1:
        yield (
            "reinit_layers = 1 where source_head = 'keep', as only the layers on top of the "
            f"source classifier are new, got {dials.reinit_layers}; replace the head, or leave "
            "reinit_layers out"
        )
    if dials.dtnh != "off" and not PULLED.holds(values):
        yield (
            f"dtnh = {dials.dtnh!r} must have a pull to the source to project ({PULLED}), got "
            "none; switch one on, or dtnh off"
        )


def _without_source(dials: Dials) -> Iterator[str]:
    usual = Dials()
    for name in OF_SOURCE:
        value = getattr(dials, name)
        if value != getattr(usual, name):
            yield (
                f"{name} = {getattr(usual, name)!r} without pre-trained weights, got {value!r}; "
                "name weights, or leave it out"
            )
