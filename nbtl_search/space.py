"""The non-binary search space, as data: named spaces, conditional rows, and points inside them.

A layer is a block of the network or its head, as in Plested, Shen and Gedeon (2021, arXiv
2107.08585, section 4.3). Ranges are the grids of their tables 2-6, made continuous.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Protocol

from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, KnownRecipe, Row, SearchSettings, SettingValue


class Suggests(Protocol):
    """What a space needs of a trial: three methods of `optuna.Trial`."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Float:
    """A real number in [low, high], uniform or (log) uniform in its logarithm."""

    low: float
    high: float
    log: bool = False

    def suggest(self, name: str, trial: Suggests) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def at(self, u: float) -> float:
        """Return the value at the quantile u in [0, 1)."""
        if self.log:
            return min(self.high, self.low * (self.high / self.low) ** u)
        return self.low + u * (self.high - self.low)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Int:
    """An integer in [low, high], both included."""

    low: int
    high: int

    def suggest(self, name: str, trial: Suggests) -> int:
        return trial.suggest_int(name, self.low, self.high)

    def at(self, u: float) -> int:
        """Return the value at the quantile u in [0, 1)."""
        return self.low + math.floor(u * (self.high - self.low + 1))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.low <= value <= self.high


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few values without an order."""

    options: tuple[SettingValue, ...]

    def suggest(self, name: str, trial: Suggests) -> SettingValue:
        value: SettingValue = trial.suggest_categorical(name, self.options)
        return value

    def at(self, u: float) -> SettingValue:
        """Return the value at the quantile u in [0, 1)."""
        return self.options[math.floor(u * len(self.options))]

    def __contains__(self, value: object) -> bool:
        return value in self.options


Domain = Float | Int | Choice


@dataclass(frozen=True, kw_only=True)
class When:
    """The condition of a row: another dial, decided before it, is above zero."""

    dial: str

    def holds(self, values: Mapping[str, Any]) -> bool:
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
                name="lr_low_ratio", domain=Float(low=0.04, high=1, log=True), when=When(dial="n_low")
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
        fixed = {**space.fixed, name: _count(name, change.fixed, space.n_blocks)}
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
        return Choice(options=tuple(_count(name, option, n_blocks) for option in change.options))
    if isinstance(domain, Choice):
        message = f"search.rows.{name} takes options or fixed, got bounds"
        raise SpecError(message)
    low = domain.low if change.low is None else change.low
    high = domain.high if change.high is None else _count(name, change.high, n_blocks)
    if isinstance(high, str) or low > high or (isinstance(domain, Float) and domain.log and low <= 0):
        message = f"search.rows.{name} must have low <= high (and low > 0 if log), got {low} .. {high}"
        raise SpecError(message)
    if isinstance(domain, Int):
        if low != int(low) or high != int(high):
            message = f"search.rows.{name} takes whole numbers, got {low} .. {high}"
            raise SpecError(message)
        return Int(low=int(low), high=int(high))
    return Float(low=low, high=float(high), log=domain.log)


def _count(name: str, value: SettingValue, n_blocks: int) -> SettingValue:
    """Resolve 'all' and fractions such as '14/22', which count blocks of any network."""
    if not isinstance(value, str) or name not in {"n_low", "n_l2sp", "reinit_layers"}:
        return value
    if value == "all":
        return n_blocks
    try:
        return round(Fraction(value) * n_blocks)
    except (ValueError, ZeroDivisionError) as error:
        message = f"{name} must be a count, 'all' or a fraction such as '14/22', got {value!r}"
        raise SpecError(message) from error


def suggest(space: Space, trial: Suggests) -> Dials:
    """Ask the trial for every row whose condition holds.

    Raises:
        SpecError: the space allows a value that `Dials` does not.
    """
    values: dict[str, Any] = _defaults(space)
    for row in space.rows:
        if row.when is None or row.when.holds(values):
            values[row.name] = row.domain.suggest(row.name, trial)
    return Dials.parse(values)


def suggest_row(space: Space, name: str, trial: Suggests) -> None:
    """Ask the trial for one row, so that the storage learns a value that is already fixed."""
    row = space.row(name)
    if row is not None:
        row.domain.suggest(name, trial)


def known_dials(known: KnownRecipe, *, space: Space) -> Dials:
    """Return a known recipe's dials for this network; what it leaves out takes the default.

    Raises:
        SpecError: a dial that does not exist, or a value it cannot have.
    """
    try:
        return Dials.parse(
            {name: _count(name, value, space.n_blocks) for name, value in known.dials.items()}
        )
    except SpecError as error:
        message = f"known recipe {known.name!r}: {error}"
        raise SpecError(message) from error


def outside(space: Space, dials: Dials) -> list[str]:
    """Name the dials whose values the space does not hold; empty for a point inside it."""
    values = dials.model_dump()
    wrong = [
        f"{row.name} = {values[row.name]} is not in {row.domain}"
        for row in _active(space, values)
        if values[row.name] not in row.domain
    ]
    return wrong + [
        f"{name} = {values[name]} where the space holds {fixed}"
        for name, fixed in space.fixed.items()
        if values[name] != fixed
    ]


def params_of(space: Space, dials: Dials) -> dict[str, Any]:
    """Return the searched rows of this point, as the sampler's storage names them."""
    values = dials.model_dump()
    return {
        row.name: values[row.name]
        for row in _active(space, values)
        if values[row.name] in row.domain
    }


def design(space: Space, *, n: int, seed: int) -> list[dict[str, Any]]:
    """Return n points that fill the space evenly: a scrambled Sobol sequence (Owen, 1998)."""
    from scipy.stats import qmc  # noqa: PLC0415  (half a second that most commands never need)

    if n == 0 or not space.rows:
        return []
    sequence = qmc.Sobol(len(space.rows), scramble=True, rng=seed)
    points = sequence.random_base2(math.ceil(math.log2(n)) if n > 1 else 0)[:n]
    return [_point(space, point) for point in points]


def _point(space: Space, point: Sequence[float]) -> dict[str, Any]:
    values = _defaults(space)
    values |= {row.name: row.domain.at(float(u)) for row, u in zip(space.rows, point, strict=True)}
    return {row.name: values[row.name] for row in _active(space, values)}


def _active(space: Space, values: Mapping[str, Any]) -> list[SpaceRow]:
    return [row for row in space.rows if row.when is None or row.when.holds(values)]


def _defaults(space: Space) -> dict[str, Any]:
    return Dials().model_dump() | dict(space.fixed)
