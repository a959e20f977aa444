"""Warm start: the best recipes of earlier studies, those of the closest datasets first.

A zero-shot portfolio: each study gives its best recipe, in the order of closeness, before any gives
its second best, so that one misleading neighbour costs little.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from nbtl_search.errors import SpecError
from nbtl_search.space import effective
from nbtl_search.spec import Diagnosis, Dials, KnownRecipe, SettingValue

DELTA_UNIT: Final = 30.0
"""Points: what random minus fixed accuracy is of the paper's least suited datasets (table 7)."""

IMAGES: Final = "images per class"


@dataclass(frozen=True, kw_only=True)
class EarlierRecipe:
    """A recipe that an earlier study tried."""

    trial: int
    top1: float
    """Validation top-1 in percent."""
    gain: float | None
    """Points over that study's own default; None where the default has no result."""
    dials: Mapping[str, SettingValue]
    """As `Dials`; counts are of that study's network."""


@dataclass(frozen=True, kw_only=True)
class EarlierStudy:
    """What an earlier study leaves to later ones."""

    study: str
    diagnosis: Diagnosis | None
    model: str
    image_px: int
    recipes: tuple[EarlierRecipe, ...]
    """Best first."""


@dataclass(frozen=True, kw_only=True)
class Distance:
    """How far two datasets are apart under the same weights; 0 is the same in all compared."""

    value: float
    compared: tuple[str, ...]
    """What it is the mean over."""


def closeness(a: Diagnosis, b: Diagnosis) -> Distance | None:
    """Return the mean absolute difference of what both have measured, each in its own unit.

    Compared are the few measures that mean about the same on any dataset: LEEP and NCE over ln C
    (what knowing nothing costs), the regularised H-score over C - 1 (its largest value), random
    minus fixed accuracy over 30 points (only where both trained for the same number of epochs),
    the fixed accuracy as a fraction; and, beside at least one of these, the images per class, a
    tenfold as one. These units are a choice of this project, without evidence of their own.

    None where the network, its weights or the layer differ, or no measure is common.
    """
    if _source(a) != _source(b):
        return None
    in_a, in_b = _coordinates(a), _coordinates(b)
    common = [name for name in in_a if name in in_b]
    if _epochs(a) != _epochs(b):
        common = [name for name in common if name != "random - fixed"]
    if common == [IMAGES]:
        return None
    differences = [abs(in_a[name] - in_b[name]) for name in common]
    return Distance(value=sum(differences) / len(differences), compared=tuple(common))


def ranked(
    diagnosis: Diagnosis,
    earlier: Sequence[EarlierStudy],
    *,
    n: int,
    known: Sequence[Dials] = (),
) -> tuple[KnownRecipe, ...]:
    """Return at most n recipes of earlier studies of the same network, most promising first.

    Studies whose closeness is unknown come after all others. A recipe that did worse than its
    study's default is left out, and so is one that equals an earlier one, or one of the `known`
    that are tried anyway, in all dials that have an effect, and one whose dials this version does
    not understand.
    """
    taken = {effective(dials) for dials in known}
    recipes: list[KnownRecipe] = []
    names: set[str] = set()
    for recipe in _round_robin(diagnosis, earlier):
        dials = _read(recipe)
        if len(recipes) == n or dials is None or dials in taken or recipe.name in names:
            continue
        taken.add(dials)
        names.add(recipe.name)
        recipes.append(recipe)
    return tuple(recipes)


def _read(recipe: KnownRecipe) -> Dials | None:
    try:
        return effective(Dials.parse(recipe.dials))
    except SpecError:
        return None


def _round_robin(diagnosis: Diagnosis, earlier: Sequence[EarlierStudy]) -> Iterator[KnownRecipe]:
    """Yield each study's best in order of closeness, then each one's second best, and so on."""
    measured = [
        (one, None if one.diagnosis is None else closeness(diagnosis, one.diagnosis))
        for one in earlier
        if one.model == diagnosis.model
    ]
    measured.sort(key=lambda pair: math.inf if pair[1] is None else pair[1].value)
    columns = [
        [
            _known(diagnosis, one, recipe, distance)
            for recipe in one.recipes
            if recipe.gain is None or recipe.gain >= 0
        ]
        for one, distance in measured
    ]
    for rank in zip_longest(*columns):
        yield from (recipe for recipe in rank if recipe is not None)


def _known(
    diagnosis: Diagnosis, one: EarlierStudy, recipe: EarlierRecipe, distance: Distance | None
) -> KnownRecipe:
    gain = (
        "its default has no result" if recipe.gain is None else f"{recipe.gain:+.1f} over default"
    )
    size = "" if one.image_px == diagnosis.image_px else f"; at {one.image_px} px images, not "
    size += f"{diagnosis.image_px}" if size else ""
    return KnownRecipe(
        name=f"warm-start-{one.study}-{recipe.trial}",
        reason=f"warm start: trial {recipe.trial} of {one.study}, validation top-1 "
        f"{recipe.top1:.1f} (one run; {gain}); {_how_close(diagnosis, one, distance)}{size}",
        dials=dict(recipe.dials),
    )


def _how_close(diagnosis: Diagnosis, one: EarlierStudy, distance: Distance | None) -> str:
    if distance is not None:
        return f"distance {distance.value:.2f} in {', '.join(distance.compared)}"
    if one.diagnosis is None:
        return "its distance is unknown: it was not diagnosed"
    if _source(diagnosis) != _source(one.diagnosis):
        return "its distance is unknown: other weights, or another layer was measured"
    return "its distance is unknown: no measure in common"


def _source(diagnosis: Diagnosis) -> tuple[str, str, str]:
    return diagnosis.model, diagnosis.weights_digest, diagnosis.layer


def _epochs(diagnosis: Diagnosis) -> SettingValue | None:
    random = diagnosis.measured("random_accuracy")
    return None if random is None else random.settings.get("epochs")


def _coordinates(diagnosis: Diagnosis) -> dict[str, float]:
    """Return what can be compared between datasets, by name; what has no value is left out."""
    fixed, random = diagnosis.value("fixed_accuracy"), diagnosis.value("random_accuracy")
    n_classes = diagnosis.n_classes
    values = {
        "leep": _scaled(diagnosis.value("leep"), math.log(n_classes)),
        "nce": _scaled(diagnosis.value("nce"), math.log(n_classes)),
        "hscore_regularised": _scaled(diagnosis.value("hscore_regularised"), n_classes - 1),
        "fixed_accuracy": _scaled(fixed, 100),
        "random - fixed": None
        if fixed is None or random is None
        else (random - fixed) / DELTA_UNIT,
        IMAGES: math.log10(diagnosis.n_images / n_classes),
    }
    return {name: value for name, value in values.items() if value is not None}


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
