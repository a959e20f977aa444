"""The values that define a study, a run and what a run gives back."""

from nbtl_search.spec.advised import Advised, Prior, Regime
from nbtl_search.spec.diagnosis import POOLED, TITLES, Diagnosis, Measured
from nbtl_search.spec.dials import Dials, MethodSettings
from nbtl_search.spec.known import KnownRecipe, SettingValue
from nbtl_search.spec.recipe import (
    AugmentSettings,
    DataSettings,
    Epoch,
    Facts,
    ModelSettings,
    Recipe,
    TrainSettings,
    best_epoch,
)
from nbtl_search.spec.study import (
    Budget,
    Pruning,
    Row,
    SearchSettings,
    StudySpec,
)
from nbtl_search.spec.text import read_toml, with_settings, write_toml
from nbtl_search.spec.values import Value

__all__ = [
    "POOLED",
    "TITLES",
    "Advised",
    "AugmentSettings",
    "Budget",
    "DataSettings",
    "Diagnosis",
    "Dials",
    "Epoch",
    "Facts",
    "KnownRecipe",
    "Measured",
    "MethodSettings",
    "ModelSettings",
    "Prior",
    "Pruning",
    "Recipe",
    "Regime",
    "Row",
    "SearchSettings",
    "SettingValue",
    "StudySpec",
    "TrainSettings",
    "Value",
    "best_epoch",
    "read_toml",
    "with_settings",
    "write_toml",
]
