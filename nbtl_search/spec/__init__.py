"""Specifications: frozen values of a study, a run and a result, shared by search and training."""

from nbtl_search.spec.diagnosis import POOLED, TITLES, Diagnosis, Measured
from nbtl_search.spec.recipe import (
    AugmentSettings,
    DataSettings,
    Dials,
    Epoch,
    Facts,
    KnownRecipe,
    MethodSettings,
    ModelSettings,
    Recipe,
    SettingValue,
    TrainSettings,
    best_epoch,
)
from nbtl_search.spec.study import (
    Advised,
    Budget,
    Fork,
    Prior,
    Pruning,
    Regime,
    Row,
    SearchSettings,
    StudySpec,
)
from nbtl_search.spec.toml import read_toml, with_settings, write_toml
from nbtl_search.spec.values import Progress, StageProgress, Value

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
    "Fork",
    "KnownRecipe",
    "Measured",
    "MethodSettings",
    "ModelSettings",
    "Prior",
    "Progress",
    "Pruning",
    "Recipe",
    "Regime",
    "Row",
    "SearchSettings",
    "SettingValue",
    "StageProgress",
    "StudySpec",
    "TrainSettings",
    "Value",
    "best_epoch",
    "read_toml",
    "with_settings",
    "write_toml",
]
