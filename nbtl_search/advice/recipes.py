"""First recipes and a prior for a new study: table 7 and earlier studies, in bounded shares.

Forms and ratios are those of tables 2-6 of Plested, Shen and Gedeon (2021, arXiv 2107.08585);
counts of blocks are parts of Inception-v4's 22. Rates keep the paper's order between the regimes,
and their scale is a network's own, so that each form is also tried at other rates. Table 6
contradicts table 7 on new layers for two of four datasets: none of this fixes a dial.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Final

from nbtl_search.advice.regime import WARNING, conclude
from nbtl_search.advice.warm_start import EarlierStudy, ranked
from nbtl_search.errors import SpecError
from nbtl_search.space import CONDITIONS, Space, effective, idle, known_dials, outside
from nbtl_search.space.regimes import effective_rate
from nbtl_search.spec import Advised, Diagnosis, Dials, KnownRecipe, Prior, Regime, SettingValue

TABLE7_PART: Final = 6
"""Table 7's recipes take at most one in so many trials, rounded down."""
WARM_START_PART: Final = 6
"""Those of warm start take at most one in so many. Together: never worse than a search without
advice by more than what these shares cost it, however wrong the advice."""
_DTD: Final[Mapping[str, SettingValue]] = {
    "reinit_layers": 2,
    "lr_high": 0.002,
    "n_low": 0,
    "n_l2sp": "14/22",
    "alpha": 1e-3,
    "beta": 1e-3,
}
_CALTECH: Final[Mapping[str, SettingValue]] = {
    "reinit_layers": 1,
    "lr_high": 0.0025,
    "n_low": 0,
    "n_l2sp": "all",
    "alpha": 1e-2,
    "beta": 1e-2,
}
# The paper states no weight decay: beta of plain L2 is the authors' released command's.
_CARS: Final[Mapping[str, SettingValue]] = {
    "reinit_layers": 1,
    "lr_high": 0.025,
    "n_low": "8/22",
    "lr_low_ratio": 0.4,
    "n_l2sp": 0,
    "beta": 5e-4,
}
_AIRCRAFT: Final[Mapping[str, SettingValue]] = {
    **_CARS,
    "reinit_layers": 3,
    "lr_head_ratio": 0.4,
}
_FORMS: Final[Mapping[str, tuple[Mapping[str, SettingValue], str]]] = {
    "dtd": (_DTD, "paper table 6: DTD's best, 78.90 against 77.30 of the default"),
    "caltech": (_CALTECH, "paper table 6: Caltech's best, 84.52 against 83.69 of the default"),
    "cars": (_CARS, "paper table 6: Cars' best, 94.86 against 94.59 of the default"),
    "aircraft": (_AIRCRAFT, "paper table 6: Aircraft's best, 94.50 against 93.78 of the default"),
}


def _recipe(form: str, lr: float) -> KnownRecipe:
    """Return a form of table 6 at a rate: the printed one, or a probe of the network's scale."""
    dials, source = _FORMS[form]
    printed = dials["lr_high"]
    if lr == printed:
        return KnownRecipe(name=f"table7-{form}", reason=f"{source}, as printed", dials=dict(dials))
    return KnownRecipe(
        name=f"table7-{form}-lr-{lr:g}",
        reason=f"probe of the scale: rate {lr:g} instead of {printed:g}, as rates are a network's "
        f"own while forms travel; the form is of {source}",
        dials={**dials, "lr_high": lr},
    )


_SUITED: Final = (
    _recipe("dtd", 0.002),
    _recipe("caltech", 0.0025),
    _recipe("dtd", 0.005),
    _recipe("dtd", 0.01),
    _recipe("caltech", 0.01),
)
_UNSUITED: Final = (
    _recipe("cars", 0.01),
    _recipe("cars", 0.025),
    _recipe("aircraft", 0.025),
    _recipe("cars", 0.004),
    _recipe("aircraft", 0.01),
)
# None for n_low: table 7 says one rate for all layers, table 4 has gains from low ones on Caltech
# and DTD, and in replayed searches a prior of one rate cost points (benchmarks/README.md).
_SUITED_PRIOR: Final[Mapping[str, Prior]] = {
    "lr_high": Prior(
        low=1e-3,
        high=1e-2,
        reason="paper table 7: a low rate; table 6 has 0.002 for DTD and 0.0025 for Caltech, and "
        "up to five times that probes the scale",
    ),
    "n_l2sp": Prior(
        low="14/22",
        high="all",
        reason="paper table 7: L2-SP; table 6 has 14 blocks for DTD, all for Caltech",
    ),
    "alpha": Prior(
        low=1e-3, high=1e-2, reason="paper table 6: 0.001 for DTD (78.90), 0.01 for Caltech (84.52)"
    ),
    "beta": Prior(
        low=1e-3, high=1e-2, reason="paper table 6: 0.001 for DTD (78.90), 0.01 for Caltech (84.52)"
    ),
}
_UNSUITED_PRIOR: Final[Mapping[str, Prior]] = {
    "lr_high": Prior(
        low=5e-3,
        high=4e-2,
        reason="paper table 7: a high rate; table 6 has 0.025 for Cars and Aircraft, and down to "
        "a fifth of that probes the scale",
    ),
    "n_low": Prior(
        low="8/22",
        high="10/22",
        reason="paper table 7: low layers at a low rate; tables 4 and 6 have 8 to 10 blocks for "
        "Cars (94.86) and Aircraft (94.50)",
    ),
    "lr_low_ratio": Prior(
        low=0.4,
        high=0.6,
        reason="paper table 4: 0.4 for Cars (94.86), 0.4 to 0.6 for Aircraft (94.50)",
    ),
    "n_l2sp": Prior(
        low=0,
        high=0,
        reason="paper table 7: L2 rather than L2-SP; table 6 has none for Cars, Aircraft",
    ),
    "reinit_layers": Prior(
        low=1,
        high=1,
        reason="paper table 7: only the classifier; so table 6 for Cars (94.86), not Aircraft (3)",
    ),
}
_BORDERLINE_PRIOR: Final[Mapping[str, Prior]] = {
    "lr_high": Prior(
        low=1e-3, high=4e-2, reason="paper table 7: what either regime asks for, 0.001 to 0.04"
    ),
    "lr_low_ratio": _UNSUITED_PRIOR["lr_low_ratio"],
    "alpha": _SUITED_PRIOR["alpha"],
}


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
    earlier: Sequence[EarlierStudy] = (),
    margin: float = 3.0,
) -> Advised:
    """Return what to try first and where to look more, with the reason of each and the evidence.

    Warm start and table 7 take turns, within their shares of the budget and within what the
    study's known recipes leave of it. A recipe that equals a known or an earlier one makes room for
    the next of its kind; one outside the space does too, and the evidence says so.

    Raises:
        SpecError: the margin is negative, or a known recipe's dials are not valid.
    """
    conclusion = conclude(diagnosis, margin=margin)
    of_earlier = ranked(diagnosis, earlier, n=sum(len(one.recipes) for one in earlier))
    warm_start = _Source(waiting=deque(of_earlier), share=n_trials // WARM_START_PART)
    paper = _Source(waiting=deque(table7(conclusion.regime)), share=n_trials // TABLE7_PART)
    recipes = tuple(_in_turns(warm_start, paper, space=space, known=known, n_trials=n_trials))
    evidence = [line for line in conclusion.evidence if line != WARNING]
    if recipes:
        evidence.append(
            f"of {n_trials} trials {len(warm_start.taken)} try what earlier studies found (at most "
            f"1 in {WARM_START_PART}) and {len(paper.taken)} what table 7 leads to (at most 1 in "
            f"{TABLE7_PART})"
        )
    evidence += _left_out(warm_start, "the warm start") + _left_out(paper, "table 7")
    return Advised(
        regime=conclusion.regime,
        evidence=(*evidence, WARNING),
        recipes=recipes,
        prior=_prior(conclusion.regime, space),
    )


def table7(regime: Regime) -> tuple[KnownRecipe, ...]:
    """Return the recipes worth trying first, most useful first; both sides' where borderline."""
    return {
        "suited": _SUITED,
        "unsuited": _UNSUITED,
        "borderline": _alternating(_SUITED, _UNSUITED),
        "unknown": (),
    }[regime]


def prior(regime: Regime) -> dict[str, Prior]:
    """Return where to look more, by dial; nothing where it is unknown.

    Where it is borderline, dials on which the two regimes contradict each other have none: new
    layers, how many blocks are slow or under L2-SP, and beta, which goes with the latter. Dials
    that only count where another is on (alpha, the low rate's ratio) keep that side's.
    """
    return dict(
        {
            "suited": _SUITED_PRIOR,
            "unsuited": _UNSUITED_PRIOR,
            "borderline": _BORDERLINE_PRIOR,
            "unknown": {},
        }[regime]
    )


def _alternating(
    first: Sequence[KnownRecipe], second: Sequence[KnownRecipe]
) -> tuple[KnownRecipe, ...]:
    pairs = chain.from_iterable(zip_longest(first, second))
    return tuple(recipe for recipe in pairs if recipe is not None)


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
    if dials.reinit_layers > 1:  # a classifier on new layers has nothing to be fitted to
        undecided.pop("head_start", None)
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
