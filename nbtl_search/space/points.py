"""Points of a space: proposed, written by hand, or spread evenly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nbtl_search.errors import SpecError
from nbtl_search.space.domains import Suggests
from nbtl_search.space.named import Space, SpaceRow, count_of
from nbtl_search.space.priors import value_at
from nbtl_search.spec import Dials, KnownRecipe, Prior


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
            {name: count_of(name, value, space.n_blocks) for name, value in known.dials.items()}
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
    return [_point(space, point, prior or {}) for point in points]


def _point(space: Space, point: Sequence[float], prior: Mapping[str, Prior]) -> dict[str, Any]:
    values = _defaults(space)
    values |= {
        row.name: value_at(row, float(u), prior=prior.get(row.name), n_blocks=space.n_blocks)
        for row, u in zip(space.rows, point, strict=True)
    }
    return {row.name: values[row.name] for row in _active(space, values)}


def _active(space: Space, values: Mapping[str, Any]) -> list[SpaceRow]:
    return [row for row in space.rows if row.when is None or row.when.holds(values)]


def _defaults(space: Space) -> dict[str, Any]:
    return Dials().model_dump() | dict(space.fixed)
