"""The named spaces, and a study's changes to their rows.

A layer is a block of the network or its head, as in Plested, Shen and Gedeon (2021, arXiv
2107.08585, section 4.3). Ranges are the grids of their tables 2-6, made continuous.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from nbtl_search.errors import SpecError
from nbtl_search.space.domains import Choice, Domain, Float, Int
from nbtl_search.spec import Dials, Row, SearchSettings, SettingValue


@dataclass(frozen=True, kw_only=True)
class When:
    """The condition of a row: another dial, decided before it, is above zero."""

    dial: str

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Tell whether it holds for the values decided so far."""
        return bool(values[self.dial] > 0)


@dataclass(frozen=True, kw_only=True)
class SpaceRow:
    """One dial that is searched."""

    name: str
    domain: Domain
    when: When | None = None


@dataclass(frozen=True, kw_only=True)
class Space:
    """The rows that are searched, in the order they are decided, and the dials held fixed."""

    n_blocks: int
    rows: tuple[SpaceRow, ...]
    fixed: Mapping[str, SettingValue] = field(default_factory=dict)

    def row(self, name: str) -> SpaceRow | None:
        """Return the row of this dial, if it is searched."""
        return next((row for row in self.rows if row.name == name), None)


REFERENCE_BLOCKS = 22  # of Inception-v4, whose layer counts the paper prints
_RATE = Float(low=5e-4, high=5e-2, log=True)
_STRENGTH = Float(low=1e-5, high=1e-1, log=True)


def _binary(n_blocks: int) -> Space:
    """Return the usual practice: one new layer, one rate, and L2 or L2-SP on everything."""
    return Space(
        n_blocks=n_blocks,
        rows=(
            SpaceRow(name="lr_high", domain=_RATE),
            SpaceRow(name="n_l2sp", domain=Choice(options=(0, n_blocks))),
            SpaceRow(name="alpha", domain=_STRENGTH, when=When(dial="n_l2sp")),
            SpaceRow(name="beta", domain=_STRENGTH),
        ),
        fixed={"reinit_layers": 1, "n_low": 0},
    )


def _paper(n_blocks: int) -> Space:
    """Return the paper's dials: how many layers are new, slow, and pulled to their old weights."""
    n_low = round(18 * n_blocks / REFERENCE_BLOCKS)
    return Space(
        n_blocks=n_blocks,
        rows=(
            SpaceRow(name="reinit_layers", domain=Int(low=1, high=min(3, n_blocks + 1))),
            SpaceRow(name="lr_high", domain=_RATE),
            SpaceRow(name="lr_head_ratio", domain=Float(low=0.1, high=10, log=True)),
            SpaceRow(name="n_low", domain=Int(low=0, high=n_low)),
            SpaceRow(
                name="lr_low_ratio",
                domain=Float(low=0.04, high=1, log=True),
                when=When(dial="n_low"),
            ),
            SpaceRow(name="n_l2sp", domain=Int(low=0, high=n_blocks)),
            SpaceRow(name="alpha", domain=_STRENGTH, when=When(dial="n_l2sp")),
            SpaceRow(name="beta", domain=_STRENGTH),
        ),
    )


SPACES = {"binary": _binary, "paper": _paper}


def build(search: SearchSettings, *, n_blocks: int) -> Space:
    """Return the named space with the study's changes to its rows.

    Raises:
        SpecError: a change names no dial of the space or leaves it no value.
    """
    space = SPACES[search.space](n_blocks)
    for name, change in search.rows.items():
        space = _changed(space, name, change)
    return space


def _changed(space: Space, name: str, change: Row) -> Space:
    if name not in Dials.model_fields:
        message = f"search.rows: no dial {name!r}; known dials: {', '.join(Dials.model_fields)}"
        raise SpecError(message)
    row = space.row(name)
    if change.fixed is not None:
        rows = tuple(other for other in space.rows if other.name != name)
        fixed = {**space.fixed, name: count_of(name, change.fixed, space.n_blocks)}
        Dials.parse(fixed)
        return replace(space, rows=rows, fixed=fixed)
    if row is None:
        row = SpaceRow(name=name, domain=_domain_of(name))
        fixed = {key: value for key, value in space.fixed.items() if key != name}
        space = replace(space, rows=(row, *space.rows), fixed=fixed)
    new = replace(row, domain=_narrowed(name, row.domain, change, space.n_blocks))
    rows = tuple(new if other.name == name else other for other in space.rows)
    return replace(space, rows=rows)


def _domain_of(name: str) -> Domain:
    """Return the domain of a dial that the named space holds fixed."""
    if Dials.model_fields[name].annotation is int:
        return Int(low=0, high=REFERENCE_BLOCKS)
    return Float(low=0.0, high=1.0)


def _narrowed(name: str, domain: Domain, change: Row, n_blocks: int) -> Domain:
    if change.options is not None:
        return Choice(options=tuple(count_of(name, option, n_blocks) for option in change.options))
    if isinstance(domain, Choice):
        message = f"search.rows.{name} takes options or fixed, got bounds"
        raise SpecError(message)
    low = domain.low if change.low is None else change.low
    high = domain.high if change.high is None else count_of(name, change.high, n_blocks)
    if (
        isinstance(high, str)
        or low > high
        or (isinstance(domain, Float) and domain.log and low <= 0)
    ):
        message = (
            f"search.rows.{name} must have low <= high (and low > 0 if log), got {low} .. {high}"
        )
        raise SpecError(message)
    if isinstance(domain, Int):
        if low != int(low) or high != int(high):
            message = f"search.rows.{name} takes whole numbers, got {low} .. {high}"
            raise SpecError(message)
        return Int(low=int(low), high=int(high))
    return Float(low=low, high=float(high), log=domain.log)


def count_of(name: str, value: SettingValue, n_blocks: int) -> SettingValue:
    """Resolve 'all' and fractions such as '14/22', which count blocks of any network.

    Raises:
        SpecError: it is neither a number nor one of these.
    """
    if not isinstance(value, str) or name not in {"n_low", "n_l2sp", "reinit_layers"}:
        return value
    if value == "all":
        return n_blocks
    try:
        return round(Fraction(value) * n_blocks)
    except (ValueError, ZeroDivisionError) as error:
        message = f"{name} must be a count, 'all' or a fraction such as '14/22', got {value!r}"
        raise SpecError(message) from error
