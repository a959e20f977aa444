"""Advice for a new study: first recipes in bounded shares of its budget, and a prior."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from nbtl_search.advice.portfolio import Remembered, effective, ranked
from nbtl_search.advice.recipes import prior, table7
from nbtl_search.advice.regime import WARNING, conclude
from nbtl_search.errors import SpecError
from nbtl_search.space import CONDITIONS, Space, idle, known_dials, outside
from nbtl_search.spec import Advised, Diagnosis, Dials, KnownRecipe, Prior, Regime
from nbtl_search.spec.survey import effective_rate

TABLE7_PART: Final = 6
"""Table 7's recipes take at most one in so many trials, rounded down."""

MEMORY_PART: Final = 6
"""Those of study memory take at most one in so many. Together: never worse than a search without
advice by more than what these shares cost it, however wrong the advice."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Recipes of one origin that wait for their turn, and those that the space does not hold."""

    waiting: deque[KnownRecipe]
    share: int
    taken: list[KnownRecipe] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def advise(
    diagnosis: Diagnosis,
    *,
    space: Space,
    known: Sequence[KnownRecipe],
    n_trials: int,
    remembered: Sequence[Remembered] = (),
    margin: float = 3.0,
) -> Advised:
    """Return what to try first and where to look more, with the reason of each and the evidence.

    Study memory and table 7 take turns, within their shares of the budget and within what the
    study's known recipes leave of it. A recipe that equals a known or an earlier one makes room for
    the next of its kind; one outside the space does too, and the evidence says so.

    Raises:
        SpecError: the margin is negative, or a known recipe's dials are not valid.
    """
    conclusion = conclude(diagnosis, margin=margin)
    of_memory = ranked(diagnosis, remembered, n=sum(len(one.recipes) for one in remembered))
    memory = _Source(waiting=deque(of_memory), share=n_trials // MEMORY_PART)
    paper = _Source(waiting=deque(table7(conclusion.regime)), share=n_trials // TABLE7_PART)
    recipes = tuple(_in_turns(memory, paper, space=space, known=known, n_trials=n_trials))
    evidence = [line for line in conclusion.evidence if line != WARNING]
    if recipes:
        evidence.append(
            f"of {n_trials} trials {len(memory.taken)} try what earlier studies found (at most 1 "
            f"in {MEMORY_PART}) and {len(paper.taken)} what table 7 leads to (at most 1 in "
            f"{TABLE7_PART})"
        )
    evidence += _left_out(memory, "study memory") + _left_out(paper, "table 7")
    return Advised(
        regime=conclusion.regime,
        evidence=(*evidence, WARNING),
        recipes=recipes,
        prior=_prior(conclusion.regime, space),
    )


def _prior(regime: Regime, space: Space) -> dict[str, Prior]:
    """Return the priors of the searched rows; the rate's for the effective rate too."""
    found = prior(regime)
    if "lr_high" in found:
        found["effective_lr"] = _of_effective_rate(found["lr_high"])
    return {name: where for name, where in found.items() if space.row(name) is not None}


def _of_effective_rate(where: Prior) -> Prior:
    """Return a prior of lr_high as one of lr_high / (1 - momentum), at the paper's momentum."""
    momentum = Dials().momentum
    low, high = (
        float(f"{effective_rate(float(bound), momentum):.6g}") for bound in (where.low, where.high)
    )
    reason = f"{where.reason}; over 1 - {momentum:g}, as the paper's momentum is {momentum:g}"
    return where.replace(low=low, high=high, reason=reason)


def _in_turns(
    *sources: _Source, space: Space, known: Sequence[KnownRecipe], n_trials: int
) -> Iterator[KnownRecipe]:
    """Yield the sources' recipes in turns, with names and dials that nothing else has."""
    tried = {effective(known_dials(recipe, space=space)) for recipe in known}
    names = {recipe.name for recipe in known}
    room, idle = n_trials - len(known), 0
    turns = deque(sources)
    while room > 0 and idle < len(sources):
        source = turns[0]
        turns.rotate(-1)
        found = _next(source, space, tried)
        if found is None:
            idle += 1
            continue
        recipe = found.replace(name=_free(found.name, names))
        names.add(recipe.name)
        source.taken.append(recipe)
        room, idle = room - 1, 0
        yield recipe


def _next(source: _Source, space: Space, tried: set[Dials]) -> KnownRecipe | None:
    """Return the source's next recipe that is inside the space and not tried anyway."""
    while source.waiting and len(source.taken) < source.share:
        recipe = source.waiting.popleft()
        try:
            recipe = _fitted(recipe, space)
            dials = known_dials(recipe, space=space)
        except SpecError as error:  # what another study could train, this one may not
            source.left_out.append(f"{recipe.name} ({error})")
            continue
        wrong = outside(space, dials)
        if wrong:
            source.left_out.append(f"{recipe.name} ({wrong[0]})")
        elif effective(dials) not in tried:
            tried.add(effective(dials))
            return recipe
    return None


def _fitted(recipe: KnownRecipe, space: Space) -> KnownRecipe:
    """Return the recipe with the study's fixed value of each dial that it does not decide."""
    dials = known_dials(recipe, space=space)
    without_effect = CONDITIONS.keys() & idle(dials)  # a count of none is a decision
    undecided = {
        name: value
        for name, value in space.fixed.items()
        if name not in recipe.dials or name in without_effect
    }
    if dials.source_head == "keep":  # new layers below a kept classifier cannot be trained
        undecided.pop("reinit_layers", None)
    values = {**dict(dials), **undecided}
    undecided = {name: space.limited(name, value, values) for name, value in undecided.items()}
    return recipe.replace(dials={**recipe.dials, **undecided}) if undecided else recipe


def _free(name: str, names: Iterable[str]) -> str:
    """Return the name, numbered where it is taken."""
    free, number = name, 1
    while free in names:
        number += 1
        free = f"{name}-{number}"
    return free


def _left_out(source: _Source, origin: str) -> list[str]:
    if not source.left_out:
        return []
    return [f"left out of {origin}, as outside the study's space: {', '.join(source.left_out)}"]
