"""Regimes of transfer learning (survey, 2022) as starting recipes, and the effective learning rate.

Plested and Gedeon 2022, "Deep transfer learning for image classification: a survey", arXiv
2205.09904, names the regimes by the target's size and its similarity to the source. It says that
rate and momentum are lower for more similar tasks, that rates decay faster for more similar and
for smaller targets, counted in updates, and that fewer layers should be transferred the less the
tasks match. Only these statements could be had: the figures below are this project's inference
from them and from tables 2 to 6 of Plested, Shen and Gedeon 2021 (arXiv 2107.08585).
"""

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import Field

from nbtl_search.errors import SpecError
from nbtl_search.spec.recipe import KnownRecipe, SettingValue
from nbtl_search.spec.values import Value

SurveyRegime = Literal[
    "larger-similar", "larger-dissimilar", "smaller-similar", "smaller-dissimilar"
]

# A target is larger where it has both; neither survey nor paper gives a number.
LARGER_N_IMAGES: Final = 10_000
LARGER_N_PER_CLASS: Final = 100


class Start(Value):
    """Where to start in one regime."""

    effective_lr: float = Field(gt=0, description="lr_high / (1 - momentum)")
    momentum: float = Field(ge=0, lt=1)
    decay_share: float = Field(gt=0, le=1, description="of a run's updates between decay steps")
    decay_rate: float = Field(0.9, gt=0, le=1, description="factor of each step")
    dials: dict[str, SettingValue] = Field(description="the others, as in `KnownRecipe`")
    extra: tuple[str, ...] = Field(description="methods worth adding")
    reason: str


SURVEY: Final[Mapping[SurveyRegime, Start]] = {
    "larger-similar": Start(
        effective_lr=0.03,
        momentum=0.8,
        decay_share=1 / 30,
        dials={"reinit_layers": 1, "n_low": 0, "n_l2sp": "all", "alpha": 1e-4, "beta": 1e-4},
        extra=(),
        reason="low to middle rate, fast decay, a weak pull to the source",
    ),
    "larger-dissimilar": Start(
        effective_lr=0.25,
        momentum=0.9,
        decay_share=1 / 10,
        dials={
            "reinit_layers": 1,
            "n_low": "8/22",
            "lr_low_ratio": 0.4,
            "n_l2sp": 0,
            "beta": 5e-4,
        },
        extra=("random initialisation, to compare with",),
        reason="high rate, lower in the low layers, slow decay, no pull to the source",
    ),
    "smaller-similar": Start(
        effective_lr=0.02,
        momentum=0.5,
        decay_share=1 / 40,
        dials={"reinit_layers": 2, "n_low": 0, "n_l2sp": "14/22", "alpha": 1e-2, "beta": 1e-2},
        extra=("delta", "bss", "stochnorm"),
        reason="low rate and momentum, fastest decay, a strong pull of many blocks",
    ),
    "smaller-dissimilar": Start(
        effective_lr=0.1,
        momentum=0.8,
        decay_share=1 / 20,
        dials={
            "reinit_layers": 2,
            "n_low": "8/22",
            "lr_low_ratio": 0.4,
            "n_l2sp": "8/22",
            "alpha": 1e-2,
            "beta": 1e-3,
        },
        extra=("bss", "stochnorm", "augmentation"),
        reason="middle to high rate, lower in the low layers, and a pull of these only",
    ),
}


def effective_rate(lr: float, momentum: float) -> float:
    """Return lr / (1 - momentum), which a constant gradient moves the weights by in the long run.

    Raises:
        SpecError: the momentum is not in [0, 1).
    """
    _check(momentum)
    return lr / (1 - momentum)


def rate_of(effective_lr: float, momentum: float) -> float:
    """Return the learning rate that has this effective rate at this momentum.

    Raises:
        SpecError: the momentum is not in [0, 1).
    """
    _check(momentum)
    return effective_lr * (1 - momentum)


def survey_regime(*, n_train: int, n_classes: int, similar: bool) -> SurveyRegime:
    """Return the regime of a target: larger from 10000 images and 100 images a class on.

    Args:
        n_train: training images.
        n_classes: of the target.
        similar: whether the source suits it (table 7's "suited").

    Raises:
        SpecError: there are no images, or no classes.
    """
    if n_train < 1 or n_classes < 1:
        message = f"n_train >= 1 and n_classes >= 1, got {n_train} and {n_classes}; count again"
        raise SpecError(message)
    larger = n_train >= LARGER_N_IMAGES and n_train >= LARGER_N_PER_CLASS * n_classes
    if larger:
        return "larger-similar" if similar else "larger-dissimilar"
    return "smaller-similar" if similar else "smaller-dissimilar"


def starting_recipe(regime: SurveyRegime, *, n_updates: int | None = None) -> KnownRecipe:
    """Return a regime's recipe, with lr_high from its effective rate and momentum.

    Args:
        regime: of the target.
        n_updates: of a whole run; decay steps are counted in them. None leaves the decay of the
            rates to the schedule of [train].
    """
    start = SURVEY[regime]
    lr = rate_of(start.effective_lr, start.momentum)
    decay: dict[str, SettingValue] = {}
    if n_updates is not None:
        decay["decay_updates"] = decay_updates(regime, n_updates=n_updates)
        decay["decay_factor"] = start.decay_rate
    return KnownRecipe(
        name=f"survey-{regime}",
        reason=f"survey (arXiv 2205.09904), {regime.replace('-', ' and ')}: {start.reason}; the "
        "figures are inferred" + ("" if decay else "; its decay is left out: see [train]"),
        dials={**start.dials, "lr_high": float(f"{lr:.6g}"), "momentum": start.momentum, **decay},
    )


def decay_updates(regime: SurveyRegime, *, n_updates: int) -> int:
    """Return a regime's updates between two decay steps, in a run of n_updates in all."""
    return max(1, round(SURVEY[regime].decay_share * n_updates))


def _check(momentum: float) -> None:
    if not 0 <= momentum < 1:
        message = f"0 <= momentum < 1, got {momentum}; choose one in this range"
        raise SpecError(message)
