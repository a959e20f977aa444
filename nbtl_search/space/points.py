"""Points of a space: proposed, written by hand for any network, or spread evenly.

A point has dials and params. Params are what is searched, as the sampler's storage names them;
dials are what is trained with. They differ in two ways: a count of blocks may be limited by what is
reinitialised, and `effective_lr` gives lr_high = effective_lr (1 - momentum).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from nbtl_search.errors import SpecError
from nbtl_search.space.conditions import ORDER
from nbtl_search.space.priors import value_at
from nbtl_search.space.regimes import effective_rate, rate_of
from nbtl_search.space.rows import Choice, Domain, Space, SpaceRow, Suggests, beyond, impossible
from nbtl_search.spec import Dials, KnownRecipe, Prior


def suggest(space: Space, trial: Suggests) -> Dials:
    """Ask the trial for every row whose condition holds.

    Raises:
        SpecError: the space allows a value that `Dials` does not.
    """
    return decided(space, lambda row: row.domain.suggest(row.name, trial))[0]


def suggest_row(space: Space, name: str, trial: Suggests) -> None:
    """Ask the trial for one row, so that the storage learns a value that is already fixed."""
    row = space.row(name)
    if row is not None:
        row.domain.suggest(name, trial)


def outside(space: Space, dials: Dials) -> list[str]:
    """Name the dials whose values the space does not hold; empty for a point inside it.

    What it neither searches nor fixes is held at its default. Dials without an effect are inside.
    """
    return list(_outside(space, dials).values())


def dials_outside(space: Space, dials: Dials) -> list[str]:
    """Return the names of the dials that `outside` speaks of."""
    return list(_outside(space, dials))


def _outside(space: Space, dials: Dials) -> dict[str, str]:
    values = _values(dials)
    wrong = {
        row.name: f"{row.name} = {values[row.name]} is not in {row.domain}"
        for row in space.rows
        if _active(space, row.name, values) and _param(space, row, values) not in row.domain
    }
    held = {**_left_alone(space), **space.fixed}
    return wrong | {
        name: f"{name} = {values[name]} where the space holds {fixed}"
        for name, fixed in held.items()
        if _active(space, name, values)
        and values[name] not in {fixed, space.limited(name, fixed, values)}
    }


def params_of(space: Space, dials: Dials) -> dict[str, Any]:
    """Return the searched rows of this point, as the sampler's storage names them."""
    values = _values(dials)
    params = {
        row.name: _param(space, row, values)
        for row in space.rows
        if _active(space, row.name, values)
    }
    domains = {row.name: row.domain for row in space.rows}
    return {name: value for name, value in params.items() if value in domains[name]}


def design(
    space: Space, *, n: int, seed: int, prior: Mapping[str, Prior] | None = None
) -> list[dict[str, Any]]:
    """Return n points that fill the space evenly: a scrambled Sobol sequence (Owen, 1998).

    A prior makes them fall more often where it points (`value_at`); one on a dial that the space
    does not search is ignored.

    Raises:
        SpecError: a prior's bounds are no numbers with low <= high.
    """
    from scipy.stats import qmc  # noqa: PLC0415  (half a second that most commands never need)

    if n == 0 or not space.rows:
        return []
    sequence = qmc.Sobol(len(space.rows), scramble=True, rng=seed)
    points = sequence.random_base2(math.ceil(math.log2(n)) if n > 1 else 0)[:n]
    names = [row.name for row in space.rows]
    return [_point(space, dict(zip(names, point, strict=True)), prior or {}) for point in points]


def decided(space: Space, take: Callable[[SpaceRow], Any]) -> tuple[Dials, dict[str, Any]]:
    """Return a point's dials and params, from the value that `take` gives for each active row.

    What has no effect stays at its default, also where the study fixes it.

    Raises:
        SpecError: the space allows a value that `Dials` does not.
    """
    values, params = dict(Dials()), dict[str, Any]()
    for name in ORDER:
        row = space.row(name)
        if (row is None and name not in space.fixed) or not _active(space, name, values):
            continue
        value = space.fixed[name] if row is None else take(row)
        if row is not None:
            params[name] = value
        values[name] = space.limited(name, value, values)
    effective = values.pop("effective_lr", None)
    if effective is not None:
        values["lr_high"] = rate_of(effective, values["momentum"])
    return Dials.parse(values), params


def dials_of(space: Space, params: Mapping[str, Any]) -> Dials:
    """Return the dials of a point of the design, or of what the sampler's storage holds.

    Raises:
        SpecError: a value that `Dials` does not allow.
    """
    return decided(space, lambda row: params[row.name])[0]


def known_dials(known: KnownRecipe, *, space: Space) -> Dials:
    """Return a known recipe's dials for this network; what it leaves out takes the default.

    'all' frozen or L2-SP blocks are all that keep their pre-trained values; of L2-SP, a kept source
    classifier is one. `effective_lr` may stand instead of lr_high.

    Raises:
        SpecError: a dial that does not exist, a value it cannot have, or a combination that cannot
            be trained.
    """
    try:
        return _dials(known, space)
    except SpecError as error:
        message = f"known recipe {known.name!r}: {error}"
        raise SpecError(message) from error


def _point(space: Space, at: Mapping[str, Any], prior: Mapping[str, Prior]) -> dict[str, Any]:
    def take(row: SpaceRow) -> Any:
        u = float(at[row.name])
        return value_at(row, u, prior=prior.get(row.name), n_blocks=space.n_blocks)

    return decided(space, take)[1]


def _active(space: Space, name: str, values: Mapping[str, Any]) -> bool:
    condition = space.condition(name)
    return condition is None or condition.holds(values)


def _left_alone(space: Space) -> dict[str, Any]:
    """Return the defaults of the dials that the space neither searches nor fixes."""
    decided_here = {*space.fixed, *(row.name for row in space.rows)}
    if "effective_lr" in decided_here:
        decided_here.add("lr_high")
    return {name: usual for name, usual in dict(Dials()).items() if name not in decided_here}


def _values(dials: Dials) -> dict[str, Any]:
    return {**dict(dials), "effective_lr": effective_rate(dials.lr_high, dials.momentum)}


def _param(space: Space, row: SpaceRow, values: Mapping[str, Any]) -> Any:
    """Return the value of a row that gives this dial; what gives none is the dial's own."""
    value = values[row.name]
    if row.name == "effective_lr":
        return _unrounded(row.domain, value)
    limited = space.limited(row.name, value, values)
    if limited in row.domain:
        return limited
    beyond = [n for n in _members(row.domain) if space.limited(row.name, n, values) == limited]
    return min(beyond, default=value)


def _unrounded(domain: Domain, value: float) -> float:
    """Return the domain's value that rounding has moved a little, if there is one."""
    ends = domain.options if isinstance(domain, Choice) else (domain.low, domain.high)
    near = (end for end in ends if not isinstance(end, str) and math.isclose(end, value))
    return value if value in domain else next(near, value)


def _members(domain: Domain) -> list[Any]:
    options = domain.options if isinstance(domain, Choice) else (domain.low,)
    return [option for option in options if isinstance(option, int | float)]


def _dials(known: KnownRecipe, space: Space) -> Dials:
    values: dict[str, Any] = {name: space.count(name, value) for name, value in known.dials.items()}
    effective = values.pop("effective_lr", None)
    if effective is not None:
        if "lr_high" in values:
            message = "lr_high or effective_lr, got both; leave one out"
            raise SpecError(message)
        values["lr_high"] = rate_of(effective, float(values.get("momentum", Dials().momentum)))
    dials = Dials.parse(values)
    for limit in space.limits:
        if known.dials.get(limit.dial) == "all":
            most = limit.most(dict(dials), n_blocks=space.n_blocks)
            dials = dials.replace(**{limit.dial: most})
    reasons = impossible(dials, n_blocks=space.n_blocks, pretrained=space.pretrained)
    for limit in space.limits:
        reasons += beyond(limit, dials, n_blocks=space.n_blocks)
    if reasons:
        raise SpecError(reasons[0])
    return dials
