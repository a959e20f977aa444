"""Named spaces, and a study's changes to their rows.

A layer is a block of the network or its head, as in Plested, Shen and Gedeon (2021, arXiv
2107.08585, section 4.3). Ranges of `binary` and `paper` are the grids of their tables 2-6, made
continuous; those of `extended`, where every method is a dial, stand with it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from math import nextafter
from typing import Any, Final

from nbtl_search.errors import SpecError
from nbtl_search.space.conditions import CONDITIONS, ORDER, PULLED, When
from nbtl_search.space.rows import (
    OF_SOURCE,
    Choice,
    Domain,
    Float,
    Int,
    Limit,
    Space,
    SpaceRow,
    impossible,
    position,
)
from nbtl_search.spec import Dials, Facts, Row, SearchSettings, SettingValue

REFERENCE_BLOCKS: Final = 22  # of Inception-v4, whose layer counts the paper prints
STRENGTH: Final = Float(low=1e-5, high=1e-1, log=True)
RATE: Final = Float(low=5e-4, high=5e-2, log=True)
HEAD_RATIO: Final = Float(low=0.1, high=10, log=True)
LOW_RATIO: Final = Float(low=0.04, high=1, log=True)
EFFECTIVE_RATE: Final = Float(low=5e-3, high=0.5, log=True)
OFF: Final = 0.75  # share of start-up points without a method


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


def extended(n_blocks: int) -> Space:
    """Return the paper's dials and those of every other method, to find which are needed.

    Ranges reach around the values of the methods' own authors: DELTA 0.01 (Li et al. 2019, arXiv
    1901.09229), spectral shrinkage 0.001 (Chen et al. 2019), stochastic normalisation 0.5 (Kou et
    al. 2020), distillation 4 at temperature 3. The effective rate's is the paper's at momentum 0.9.

    At least one block learns, as DELTA, distillation and most others act on what is below a
    classifier that is new; linear probing is `frozen_layers = "all"`, in a recipe or a row. The top
    of `n_l2sp` is all there are, a kept source classifier with them.

    Steps of decay are counted in updates, whatever a run's length, and their factors multiply: 0.5
    every 30 updates leaves 1e-6 of the rate after 600. So steps are at least 60 updates apart, and
    none is below 0.5.

    A switch has few options, because a sampler that models categories begins with all of them
    equally likely. In start-up points a method is off in three of four, so that of the seven
    methods two are on, on average; DTNH, which needs another method to act on, in one of two.
    """
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


SPACES: Final[Mapping[str, Callable[[int], Space]]] = {
    "binary": binary,
    "paper": paper,
    "extended": extended,
}
_BELOW_ONE: Final = nextafter(1.0, 0.0)
_INSTEAD: Final = {"effective_lr": "lr_high", "lr_high": "effective_lr"}
_AS_ROWS: Final = {"effective_lr", "dtnh"}  # no dial; and nothing to hold where nothing is pulled
_ADDED: Final[Mapping[str, Domain]] = {
    "head_start": Choice(options=("random", "logistic")),
    "layer_decay": Float(low=0.5, high=1.0),
    "reinit_layers": Int(low=0, high=REFERENCE_BLOCKS),
    "n_low": Int(low=0, high=REFERENCE_BLOCKS),
    "lr_low_ratio": Float(low=0.0, high=1.0),
    "lr_head_ratio": Float(low=0.0, high=1.0),
    "momentum": Float(low=0.0, high=1.0),
}  # where the named space has no row: stored studies go on with these


def build(
    search: SearchSettings, *, n_blocks: int, pretrained: bool = True, fits_head: bool = True
) -> Space:
    """Return the named space with the study's changes to its rows.

    Without pre-trained weights, what needs them is held off; a row for `head_start` is left out
    where no classifier can be fitted.

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
        if name != "head_start" or fits_head:
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
    return build(
        search,
        n_blocks=facts.n_blocks,
        pretrained=facts.pretrained,
        fits_head=facts.fits_head,
    )


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
    held = _unlimited(
        space,
        {
            name: value
            for name, value in {**dict(Dials()), **space.fixed}.items()
            if name not in searched
        },
    )
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


def _unlimited(space: Space, held: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the held dials whose value no limit cuts, however many layers are new."""
    row = space.row("reinit_layers")
    most = _most(row.domain) if row else held["reinit_layers"]
    kept = {"source_head": "replace", "reinit_layers": most}  # where least is left
    return {
        name: value for name, value in held.items() if space.limited(name, value, kept) == value
    }


def _most(domain: Domain) -> Any:
    return max(domain.options) if isinstance(domain, Choice) else domain.high


def _options(domain: Domain) -> tuple[SettingValue, ...]:
    return domain.options if isinstance(domain, Choice) else ()
