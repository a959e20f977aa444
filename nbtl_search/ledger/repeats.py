"""Repeats: a free worker trains a recipe once more, with another seed, instead of a new one.

The best of a search's single runs is partly lucky, and what is recommended in the end should not
be. So a share of the epochs goes to further seeds of the recipes of which they tell most
(`evidence.values`), all along and not only at the end: then what is recommended is known as well as
it can be whenever one looks, and no kind of budget has to be foreseen. Where seeds hardly differ
nothing is expected of another run, and less than the share is spent.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from nbtl_search.evidence.values import values_of
from nbtl_search.ledger.promotion import Ladder, Room, Standing

MIN_RECIPES: Final = 4
"""That have run to their end: fewer do not tell how far recipes lie apart."""

MIN_GAIN: Final = 0.1
"""Points that are expected of a run; for less a new recipe is the better use of it."""


def worth_repeating(standings: Sequence[Standing], room: Room, ladder: Ladder) -> Standing | None:
    """Return the first trial of the recipe that is to run once more; None for a new recipe."""
    n_epochs, share = ladder.n_epochs, ladder.repeats
    repeats = [one for one in standings if one.repeat_of is not None]
    spent = n_epochs + sum(one.granted for one in standings)
    if n_epochs + sum(one.granted for one in repeats) > share * spent:
        return None
    if not room.has_slot or room.at_most(n_epochs) < n_epochs:
        return None
    # A recipe that could not be trained with another seed is not repeated, nor recommended.
    broken = {one.repeat_of for one in repeats if one.state in {"pruned", "failed"}}
    runs: dict[int, list[float]] = {}
    for one in standings:
        recipe = one.number if one.repeat_of is None else one.repeat_of
        if one.state == "complete" and one.value is not None and recipe not in broken:
            runs.setdefault(recipe, []).append(one.value)
    if len(runs) < MIN_RECIPES:
        return None
    pending = Counter(
        one.repeat_of
        for one in repeats
        if one.state in {"running", "waiting"} and one.repeat_of is not None
    )
    telling = values_of(runs, n_images=ladder.n_images).most_telling(pending)
    if telling is None or telling[1] < MIN_GAIN:
        return None
    return next(one for one in standings if one.number == telling[0])
