"""Recipes written by hand, for any network."""

from typing import Any

from nbtl_search.errors import SpecError
from nbtl_search.space.possible import beyond, impossible
from nbtl_search.space.rows import Space
from nbtl_search.spec import Dials, KnownRecipe
from nbtl_search.spec.survey import rate_of


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
