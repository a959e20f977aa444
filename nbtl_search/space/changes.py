"""A named space with a study's changes to its rows."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import nextafter
from typing import Any, Final

from nbtl_search.errors import SpecError
from nbtl_search.space.conditions import CONDITIONS, ORDER, PULLED
from nbtl_search.space.domains import Choice, Domain, Float, Int
from nbtl_search.space.extended import extended
from nbtl_search.space.named import REFERENCE_BLOCKS, binary, paper
from nbtl_search.space.possible import OF_SOURCE, impossible
from nbtl_search.space.rows import Space, SpaceRow, position
from nbtl_search.spec import Dials, Facts, Row, SearchSettings, SettingValue

SPACES: Final[Mapping[str, Callable[[int], Space]]] = {
    "binary": binary,
    "paper": paper,
    "extended": extended,
}
_BELOW_ONE: Final = nextafter(1.0, 0.0)
_INSTEAD: Final = {"effective_lr": "lr_high", "lr_high": "effective_lr"}
_AS_ROWS: Final = {"effective_lr", "dtnh"}  # no dial; and nothing to hold where nothing is pulled
_ADDED: Final[Mapping[str, Domain]] = {
    "reinit_layers": Int(low=0, high=REFERENCE_BLOCKS),
    "n_low": Int(low=0, high=REFERENCE_BLOCKS),
    "lr_low_ratio": Float(low=0.0, high=1.0),
    "lr_head_ratio": Float(low=0.0, high=1.0),
    "momentum": Float(low=0.0, high=1.0),
}  # where `binary` or `paper` has no row: stored studies go on with these


def build(search: SearchSettings, *, n_blocks: int, pretrained: bool = True) -> Space:
    """Return the named space with the study's changes to its rows.

    Without pre-trained weights, what needs them is held off.

    Raises:
        SpecError: a change names no dial, leaves it no value, or makes a combination that cannot
            be trained.
    """
    both = [name for name in _INSTEAD if name in search.rows]
    if len(both) > 1:
        message = f"search.rows has {' and '.join(both)}, and one gives the other; leave one out"
        raise SpecError(message)
    space = replace(SPACES[search.space](n_blocks), pretrained=pretrained)
    if not pretrained:
        space = _without_source(space)
    for name, change in search.rows.items():
        space = _changed(space, name, change)
    # `binary` has always proposed the low rate's ratio, also where no block has it
    always = ("lr_low_ratio",) if search.space == "binary" else ()
    space = _tied(space, always)
    _check(space, search)
    return space


def build_for(search: SearchSettings, facts: Facts) -> Space:
    """Return the space of a study whose data and weights are known.

    Raises:
        SpecError: as `build`.
    """
    return build(search, n_blocks=facts.n_blocks, pretrained=facts.weights_digest != "random")


def _without_source(space: Space) -> Space:
    usual = dict(Dials())
    off = {name: usual[name] for name in OF_SOURCE if space.row(name) is not None}
    rows = tuple(row for row in space.rows if row.name not in off)
    return replace(space, rows=rows, fixed={**space.fixed, **off})


def _changed(space: Space, name: str, change: Row) -> Space:
    if name not in ORDER:
        message = f"search.rows: no dial {name!r}; known dials: {', '.join(ORDER)}"
        raise SpecError(message)
    others = tuple(row for row in space.rows if row.name not in {name, _INSTEAD.get(name)})
    held = {key: v for key, v in space.fixed.items() if key not in {name, _INSTEAD.get(name)}}
    if change.fixed is not None and name not in _AS_ROWS:
        held[name] = space.count(name, change.fixed)
        Dials.parse(held)
        return replace(space, rows=others, fixed=held)
    if change.fixed is not None:
        change = Row(options=(change.fixed,))
    row = space.row(name)
    domain = _domain_of(name, space.n_blocks) if row is None else row.domain
    new = SpaceRow(name=name, domain=_narrowed(name, domain, change, space))
    return replace(space, rows=(*others, new), fixed=held)


def _domain_of(name: str, n_blocks: int) -> Domain:
    """Return the domain of a dial that the named space does not search."""
    if name in _ADDED:
        return _ADDED[name]
    row = extended(n_blocks).row(name) or paper(n_blocks).row(name)
    assert row is not None, name  # noqa: S101  (every dial is in one of them)
    return row.domain


def _narrowed(name: str, domain: Domain, change: Row, space: Space) -> Domain:
    if change.options is not None:
        options = tuple(space.count(name, option) for option in change.options)
        _check_values(name, options)
        usual = getattr(domain, "usual", 0.0) if _first(domain) in options[:1] else 0.0
        return Choice(options=options, usual=usual)
    if change.low is None and change.high is None:
        return domain
    low, high = change.low, None
    if change.high is not None:
        found = space.count(name, change.high)
        if isinstance(found, str):
            message = f"search.rows.{name}.high must be a number or count, got {found!r}"
            raise SpecError(message)
        high = found
    if isinstance(domain, Choice):
        return _bounded(name, low, high)
    return _within(name, domain, domain.low if low is None else low, high)


def _bounded(name: str, low: float | None, high: float | None) -> Domain:
    """Return bounds in the place of options, for a dial that is a number."""
    kind = type(getattr(Dials(), name, ""))
    if low is None or high is None or kind not in {int, float}:
        both = " or both bounds" if kind in {int, float} else ""
        message = f"search.rows.{name} takes options{both} or fixed, got bounds {low} .. {high}"
        raise SpecError(message)
    if kind is int:
        return _within(name, Int(low=0, high=0), low, high)
    return _within(name, Float(low=low, high=high, log=low > 0), low, high)


def _within(name: str, domain: Float | Int, low: float, high: float | None) -> Domain:
    high = domain.high if high is None else high
    if low > high or (isinstance(domain, Float) and domain.log and low <= 0):
        message = (
            f"search.rows.{name} must have low <= high (and low > 0 if log), got {low} .. {high}"
        )
        raise SpecError(message)
    if isinstance(domain, Float):
        return Float(low=low, high=float(high), log=domain.log)
    if low != int(low) or high != int(high):
        message = f"search.rows.{name} takes whole numbers, got {low} .. {high}"
        raise SpecError(message)
    usual = domain.usual if low == domain.low else 0.0
    return Int(low=int(low), high=int(high), usual=usual)


def _check_values(name: str, options: tuple[SettingValue, ...]) -> None:
    for option in options:
        Dials.parse({"lr_high" if name == "effective_lr" else name: option})


def _first(domain: Domain) -> SettingValue:
    return domain.options[0] if isinstance(domain, Choice) else domain.low


def _tied(space: Space, always: Collection[str]) -> Space:
    """Return the space in the order of decision, its conditions freed of what never changes.

    Rows of `always` have none.
    """
    searched = {row.name for row in space.rows}
    held = {
        name: value
        for name, value in {**dict(Dials()), **space.fixed}.items()
        if name not in searched
    }
    rows = []
    for row in sorted(space.rows, key=position):
        condition = None if row.name in always else CONDITIONS.get(row.name)
        left = True if condition is None else condition.given(held)
        when = condition if left is False else None if left is True else left
        rows.append(replace(row, when=when))
    return replace(space, rows=tuple(rows))


def _check(space: Space, search: SearchSettings) -> None:
    """Refuse rows that leave only combinations that cannot be trained."""
    held = _held(space)
    values: dict[str, Any] = {name: held[name] for name in OF_SOURCE if name in held}
    if search.rows.get("frozen_layers", Row()).fixed == "all":
        del values["frozen_layers"]  # all that can be
    if "source_head" in held:
        row = space.row("reinit_layers")
        least = row.domain.at(0.0) if row and held["source_head"] == "replace" else 1
        values["reinit_layers"] = held.get("reinit_layers", least)
    reasons = impossible(Dials.parse(values), n_blocks=space.n_blocks, pretrained=space.pretrained)
    row = space.row("dtnh")
    if row and PULLED.given(held) is False and "off" not in _options(row.domain):
        reasons.append(
            f"dtnh must have a pull to the source to project ({PULLED}), got {row.domain.at(0.0)} "
            "where none is searched; search or fix one, or leave dtnh out"
        )
    for name in () if space.pretrained else OF_SOURCE:
        if space.row(name) is not None and name not in held:
            reasons.append(f"{name} needs pre-trained weights, got none; leave it out")
    if reasons:
        message = f"search.rows: {reasons[0]}"
        raise SpecError(message)


def _held(space: Space) -> dict[str, Any]:
    """Return the dials that are the same at every point: not searched, or with one value."""
    held = {**dict(Dials()), **space.fixed}
    for row in space.rows:
        held.pop(row.name, None)
        if row.when is None and row.domain.at(0.0) == row.domain.at(_BELOW_ONE):
            held[row.name] = row.domain.at(0.0)
    return held


def _options(domain: Domain) -> tuple[SettingValue, ...]:
    return domain.options if isinstance(domain, Choice) else ()
