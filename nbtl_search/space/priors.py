"""Start-up points that fall more often where advice points, and everywhere still.

A quantile u in [0, 1) goes through the inverse of the distribution

    F(t) = (1 - w) t + w clip((t - a) / (b - a), 0, 1)

in the domain's own coordinate t, where [0, 1) is the whole range (logarithmic where the domain is)
and [a, b] the part of it that the prior names: with weight w a point is uniform in that part, else
in the whole. So a value's density never falls below 1 - w of what it was, and the share of points
inside [a, b] is w + (1 - w)(b - a).
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from nbtl_search.errors import SpecError
from nbtl_search.space.rows import Choice, Float, Int, SpaceRow, count_of
from nbtl_search.spec import Prior, SettingValue

MAX_WEIGHT: Final = 0.95
"""Larger weights count as this one: no prior excludes what the wider space holds."""

_BELOW_ONE: Final = math.nextafter(1.0, 0.0)


class _Part(NamedTuple):
    """The prior's range inside a row's: in the coordinate of quantiles, and as values."""

    a: float
    b: float
    low: float
    high: float


def value_at(row: SpaceRow, u: float, *, prior: Prior | None, n_blocks: int) -> SettingValue:
    """Return a row's value at the quantile u in [0, 1), where the prior says to look more.

    Without a prior, and with one whose range does not meet the row's, it is the domain's own.
    A weight above `MAX_WEIGHT` counts as `MAX_WEIGHT`. Numbers never fall as u rises; options have
    no order, and those of them that are numbers inside the prior's range share its weight. The
    share of a usual value gives way to a prior.

    Raises:
        SpecError: the prior's bounds are no numbers with low <= high.
    """
    if prior is None:
        return row.domain.at(u)
    low, high = _bounds(row.name, prior, n_blocks)
    weight = min(prior.weight, MAX_WEIGHT)
    domain = row.domain if isinstance(row.domain, Float) else replace(row.domain, usual=0.0)
    if isinstance(domain, Choice):
        return _option(domain, u, weight=weight, low=low, high=high)
    part = _part(domain, low, high)
    if part is None or weight == 0:
        return domain.at(u)
    return _number(domain, u, weight, part)


def _bounds(name: str, prior: Prior, n_blocks: int) -> tuple[float, float]:
    low, high = (count_of(name, bound, n_blocks) for bound in (prior.low, prior.high))
    if isinstance(low, str) or isinstance(high, str) or not low <= high:
        message = (
            f"the prior of {name} must have numbers (or counts of blocks) with low <= high, "
            f"got {prior.low!r} .. {prior.high!r}; exchange or leave them out"
        )
        raise SpecError(message)
    if prior.high == "all" and name == "n_l2sp":
        high += 1  # a kept source classifier, where the row goes so far
    return low, high


def _part(domain: Float | Int, low: float, high: float) -> _Part | None:
    """Return what the row and the prior have in common; None where that is nothing."""
    if isinstance(domain, Int):
        low, high = max(domain.low, math.ceil(low)), min(domain.high, math.floor(high))
        n = domain.high - domain.low + 1
        a, b = (low - domain.low) / n, (high + 1 - domain.low) / n
        return _Part(a, b, low, high) if low <= high else None
    low, high = max(domain.low, low), min(domain.high, high)
    if low > high or domain.low == domain.high:
        return None
    return _Part(_coordinate(domain, low), _coordinate(domain, high), low, high)


def _coordinate(domain: Float, value: float) -> float:
    if domain.log:
        return math.log(value / domain.low) / math.log(domain.high / domain.low)
    return (value - domain.low) / (domain.high - domain.low)


def _number(domain: Float | Int, u: float, weight: float, part: _Part) -> float:
    """Return the inverse of F at u: three straight pieces. Rounding stays inside its piece."""
    rest = 1 - weight
    if u < rest * part.a:
        return min(domain.at(u / rest), part.low)
    if u < rest * part.b + weight:
        width = part.b - part.a
        t = part.a + (u - rest * part.a) * width / (rest * width + weight)
        return min(max(domain.at(min(t, _BELOW_ONE)), part.low), part.high)
    value = domain.at(min((u - weight) / rest, _BELOW_ONE))
    return max(min(value, domain.high), part.high)


def _option(domain: Choice, u: float, *, weight: float, low: float, high: float) -> SettingValue:
    inside = [not isinstance(option, str) and low <= option <= high for option in domain.options]
    if not any(inside) or weight == 0:
        return domain.at(u)
    n, extra = len(inside), weight / sum(inside)
    return domain.options[_first_above(u, ((1 - weight) / n + extra * here for here in inside))]


def _first_above(u: float, masses: Iterable[float]) -> int:
    """Return the first index whose cumulated mass is above u; the last where rounding ate it."""
    total, last = 0.0, 0
    for last, mass in enumerate(masses):  # noqa: B007  (the last index is what is wanted)
        total += mass
        if u < total:
            break
    return last
