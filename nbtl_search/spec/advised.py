"""What a diagnosis and earlier studies advise: which recipes first, and where to look more."""

from typing import Literal

from pydantic import Field

from nbtl_search.spec.dials import Fraction
from nbtl_search.spec.known import KnownRecipe, SettingValue
from nbtl_search.spec.values import Value

Regime = Literal["suited", "unsuited", "borderline", "unknown"]


class Prior(Value):
    """Where in a dial's range start-up points fall more often; the whole range stays possible."""

    low: SettingValue = Field(description="a number, 'all', or a fraction of the blocks")
    high: SettingValue
    weight: Fraction = Field(0.5, description="share of the points that are drawn in [low, high]")
    reason: str = ""


class Advised(Value):
    """Advice as a study holds it: filled in by `create`, and never part of its fingerprint."""

    regime: Regime = "unknown"
    evidence: tuple[str, ...] = Field((), description="lines that say what it was concluded from")
    recipes: tuple[KnownRecipe, ...] = Field((), description="tried after the study's own")
    prior: dict[str, Prior] = Field(default_factory=dict, description="by dial")
