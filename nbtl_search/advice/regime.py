"""Table 7 as a decision rule with a margin: do the pre-trained weights suit the images?

    delta = accuracy from random initialisation - accuracy of a linear layer on fixed features

Plested, Shen and Gedeon, "Rethinking binary hyperparameters for deep transfer learning for image
classification", 2021, arXiv 2107.08585, sections 4.6, 5 and 7. Theirs is the sign rule; the margin
is ours, as the paper has no dataset between -7.8 and +28.5 points.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nbtl_search.errors import SpecError
from nbtl_search.paper.tables import paper_tables
from nbtl_search.spec import Diagnosis, Measured, Regime

RANDOM: Final = "random_accuracy"
FIXED: Final = "fixed_accuracy"
ONE_SIDED: Final = 1.645  # standard errors: five in a hundred of what is at chance exceed them

WARNING: Final = (
    "the paper's own warning (Plested et al. 2021, arXiv 2107.08585, section 7): this is based on "
    "four datasets only; care should be taken on new ones, above all outside image classification"
)

_FEW_IMAGES: Final = (
    "fisher is compared with nothing: there are fewer images than features, so that its size is "
    "the ridge's"
)
_SUITED: Final = ("dtd", "caltech")
_UNSUITED: Final = ("cars", "aircraft")
_IN_WORDS: Final = {
    "suited": "suited: the pre-trained weights fit these images, as Caltech's and DTD's",
    "unsuited": "unsuited: training from scratch does better, as on Cars and Aircraft",
    "borderline": "borderline: the difference is too small to side with either",
}


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """Which side of table 7 a dataset is on, and why."""

    regime: Regime
    delta: float | None
    """Random minus fixed, in percentage points; None where either is missing."""
    margin: float
    """What |delta| had to reach, in points: the one asked for, or twice the standard error."""
    evidence: tuple[str, ...]
    """Lines for people; the last is the paper's warning."""


def conclude(diagnosis: Diagnosis, *, margin: float = 3.0) -> Conclusion:
    """Tell whether the weights suit the images: delta <= -m suited, delta >= m unsuited.

    Anything between is borderline. m is the margin, or twice the standard error of delta where
    that is larger: a difference inside the noise of few validation images decides nothing.
    Training from random weights that is still at chance has been too short to be compared.
    Fisher's score alone gives a hint in the evidence and no regime; the earth mover's distance
    is never used (paper, section 5).

    Raises:
        SpecError: the margin is negative or no number.
    """
    if not margin >= 0:
        message = f"margin >= 0 points must hold, got {margin}; 0 is the paper's rule of the sign"
        raise SpecError(message)
    random, fixed = diagnosis.value(RANDOM), diagnosis.value(FIXED)
    if random is None or fixed is None:
        lines = (*_missing(diagnosis), *_hints(diagnosis))
        return Conclusion(regime="unknown", delta=None, margin=margin, evidence=(*lines, WARNING))
    at_chance = _at_chance(diagnosis, random)
    if at_chance:
        lines = (at_chance, *_hints(diagnosis))
        return Conclusion(regime="unknown", delta=None, margin=margin, evidence=(*lines, WARNING))
    noise = 2 * standard_error(random, fixed, n=diagnosis.n_val)
    delta, wide = random - fixed, max(margin, noise)
    regime: Regime = "suited" if delta <= -wide else "unsuited" if delta >= wide else "borderline"
    found = (
        f"{RANDOM} {random:.1f} - {FIXED} {fixed:.1f} = {delta:+.1f} points on "
        f"{diagnosis.n_val} validation images (the paper: {_paper_deltas()})"
    )
    lines = (
        found,
        f"{_IN_WORDS[regime]}; the margin is {_margin(margin, noise)}",
        *_doubts(diagnosis, delta, noise),
    )
    return Conclusion(regime=regime, delta=delta, margin=wide, evidence=(*lines, WARNING))


def standard_error(first: float, second: float, *, n: int) -> float:
    """Return the standard error of the difference of two accuracies, all in percent.

        100 sqrt((p1 (1 - p1) + p2 (1 - p2)) / (n + 2)),  p = (n accuracy / 100 + 1) / (n + 2)

    One success and one failure are added to each, so that few images never look certain (Agresti
    and Caffo 2000, The American Statistician 54). Both are judged by the same n images, whose
    agreement would make it smaller; how much training itself varies would make it larger.
    """
    shares = ((n * accuracy / 100 + 1) / (n + 2) for accuracy in (first, second))
    return 100 * math.sqrt(sum(p * (1 - p) for p in shares) / (n + 2))


def _at_chance(diagnosis: Diagnosis, random: float) -> str:
    """Return why the training from random weights tells nothing; '' where it tells something."""
    measured = diagnosis.measured(RANDOM)
    chance = None if measured is None else measured.null
    if chance is None:
        return ""
    if random - chance >= ONE_SIDED * standard_error(random, chance, n=diagnosis.n_val):
        return ""
    return (
        f"{RANDOM} {random:.1f} is within the noise of chance, {chance:.1f}, on {diagnosis.n_val} "
        "validation images: it was trained for too short a time to be compared with anything; "
        "measure again with more --random-epochs"
    )


def _margin(asked: float, noise: float) -> str:
    if asked >= noise:
        return f"{asked:.1f} points"
    return f"{noise:.1f} points, twice the standard error, as that is more than {asked:.1f}"


def _doubts(diagnosis: Diagnosis, delta: float, noise: float) -> Iterator[str]:
    n = diagnosis.n_val
    inside = "inside" if abs(delta) < noise else "outside"
    yield (
        f"one validation image is {100 / n:.2g} points, two standard errors of the difference are "
        f"{noise:.1f} (binomial, n = {n}, one run each): {delta:+.1f} lies {inside} the noise"
    )
    random = diagnosis.measured(RANDOM)
    if random is not None and "epochs" in random.settings:
        yield (
            f"{RANDOM} is from {random.settings['epochs']} epochs, a reduced budget: the paper "
            "(section 5) expects the sign to survive that; the size does not, and training from "
            "scratch for too short a time leans to 'suited'"
        )


def _missing(diagnosis: Diagnosis) -> Iterator[str]:
    for name in (RANDOM, FIXED):
        measured = diagnosis.measured(name)
        if measured is None:
            yield f"unknown: {name} was not measured"
        elif measured.value is None:
            yield f"unknown: {name} has no value: {measured.reason or 'no reason is recorded'}"


def _hints(diagnosis: Diagnosis) -> Iterator[str]:
    fisher = diagnosis.measured("fisher")
    if fisher is not None and fisher.value is not None:
        yield _FEW_IMAGES if fisher.has_few_images else _fisher_hint(fisher, fisher.value)
    for measured in diagnosis.measures:
        if measured.name.startswith("emd") and measured.value is not None:
            yield (
                f"{measured.name} {measured.value:.3g} concludes nothing: the paper (section 5) "
                "says that it should not be used for this (similarities of the suited: "
                f"{_printed('emd_similarity', _SUITED)}; unsuited: "
                f"{_printed('emd_similarity', _UNSUITED)})"
            )


def _fisher_hint(fisher: Measured, value: float) -> str:
    order = f"{_printed('fisher', _SUITED)} | {_printed('fisher', _UNSUITED)}"
    if fisher.null is None:
        return (
            f"fisher {value:.2f} without its null is compared with nothing (the paper prints "
            f"{order}, suited | unsuited): its finite-sample bias may be larger than the value"
        )
    return (
        f"a hint of low confidence, and no conclusion: fisher {value:.2f} beside its null "
        f"{fisher.null:.2f} is an excess of {value - fisher.null:.2f}, "
        f"{_side(value - fisher.null)} of the paper's order {order} (suited | unsuited); their gap "
        f"of {_gap():.2f} lies inside the finite-sample bias, which the paper leaves in"
    )


def _side(excess: float) -> str:
    if excess >= min(_figures("fisher", _SUITED)):
        return "on the suited side"
    return "on the unsuited side" if excess <= max(_figures("fisher", _UNSUITED)) else "in the gap"


def _gap() -> float:
    return min(_figures("fisher", _SUITED)) - max(_figures("fisher", _UNSUITED))


def _paper_deltas() -> str:
    keys = ("caltech", "dtd", "cars", "aircraft")
    figures = _figures("random_minus_fixed", keys)
    names = ("Caltech", "DTD", "Cars", "Aircraft")
    return ", ".join(f"{name} {x:+.1f}" for name, x in zip(names, figures, strict=True))


def _printed(measure: str, keys: tuple[str, ...]) -> str:
    return ", ".join(f"{figure:g}" for figure in _figures(measure, keys))


def _figures(measure: str, keys: tuple[str, ...]) -> list[float]:
    rows = paper_tables()["table7"]["rows"]
    return [rows[key][measure] for key in keys]
