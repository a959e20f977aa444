"""The values that define a study, a run and what a run gives back."""

from nbtl_search.spec.recipe import (
    AugmentSettings,
    DataSettings,
    Dials,
    Epoch,
    Facts,
    ModelSettings,
    Recipe,
    TrainSettings,
    best_epoch,
)
from nbtl_search.spec.study import (
    Budget,
    KnownRecipe,
    Pruning,
    Row,
    SearchSettings,
    SettingValue,
    StudySpec,
)
from nbtl_search.spec.text import read_toml, with_settings, write_toml
from nbtl_search.spec.values import Value

__all__ = [
    "AugmentSettings",
    "Budget",
    "DataSettings",
    "Dials",
    "Epoch",
    "Facts",
    "KnownRecipe",
    "ModelSettings",
    "Pruning",
    "Recipe",
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
