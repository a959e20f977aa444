"""Repeats: a free worker trains a recipe once more, with another seed, instead of a new one.

The best of a search's single runs is partly lucky, and what is recommended in the end should not
be. So a share of the epochs goes to further seeds of the recipes of which they tell most
(`evidence.values`), all along and not only at the end: then what is recommended is known as well as
it can be whenever one looks, and no kind of budget has to be foreseen. A run is granted where more
is expected of it, for its epochs, than of a new recipe: where seeds hardly differ, or recipes
differ much, less than the share is spent.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from nbtl_search.evidence.values import values_of
from nbtl_search.ledger.ledger import INFEASIBLE
from nbtl_search.ledger.promotion import Ladder, Room, Standing

MIN_RECIPES: Final = 4
"""That have run to their end: fewer do not tell how far recipes lie apart."""


def worth_repeating(standings: Sequence[Standing], room: Room, ladder: Ladder) -> Standing | None:
    """Return the first trial of the recipe that is to run once more; None for a new recipe."""
    n_epochs, share = ladder.n_epochs, ladder.repeats
    repeats = [one for one in standings if one.repeat_of is not None]
    if len(standings) - len(repeats) < room.n_first:
        return None
    spent = n_epochs + sum(one.granted for one in standings)
    if n_epochs + sum(one.granted for one in repeats) > share * spent:
        return None
    if not room.has_slot or room.at_most(n_epochs) < n_epochs:
        return None
    # A recipe that could not be trained with another seed is not repeated, nor recommended.
    broken = {one.repeat_of for one in repeats if one.cause in INFEASIBLE}
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
    values = values_of(runs, n_images=ladder.n_images)
    telling = values.most_telling(pending)
    # Per epoch: a new recipe costs the rung for as many as one in so many of them goes on from.
    rung = ladder.stop_after(0)
    n_begun = ladder.pruning.reduction if rung < n_epochs else 1.0
    of_new = values.gain_of_a_new_one() / (n_begun * rung + n_epochs - rung)
    if telling is None or telling[1] / n_epochs < of_new:
        return None
    return next(one for one in standings if one.number == telling[0])
