"""Diagnosis: how well pre-trained weights fit a dataset, measure by measure."""

from collections.abc import Mapping
from typing import Final

from pydantic import Field

from nbtl_search.spec.recipe import AtLeastOne, Count, NonNegative, SettingValue
from nbtl_search.spec.values import Value

POOLED = "pooled"
TITLES: Final[Mapping[str, str]] = {
    "fixed_accuracy": "accuracy, fixed features (%)",
    "random_accuracy": "accuracy, random weights (%)",
    "fisher": "normalised Fisher score",
    "emd": "earth mover's distance to the source",
    "emd_similarity": "EMD domain similarity",
    "emd_scale_free": "EMD by the prototypes' norm",
    "emd_classifier_rows": "EMD to the source classifier's rows",
    "logme": "LogME",
    "hscore": "H-score",
    "hscore_regularised": "regularised H-score",
    "leep": "LEEP",
    "nce": "NCE",
    "transrate": "TransRate",
    "gbc": "GBC",
    "sfda": "SFDA",
}
"""Every measure, in the order it is shown, and what to call it."""


class Measured(Value):
    """One measure: a number, or the reason why there is none."""

    name: str
    value: float | None = None
    reason: str = Field("", description="why there is no value; empty where there is one")
    null: float | None = Field(
        None, description="what features that say nothing about the labels would give"
    )
    settings: dict[str, SettingValue] = Field(
        default_factory=dict, description="ridge, gamma, epochs: all that the value depends on"
    )

    @property
    def has_few_images(self) -> bool:
        """Tell whether N - C < D, where the covariance within the classes has no inverse."""
        n, d, n_classes = (self.settings.get(key) for key in ("n", "d", "n_classes"))
        known = isinstance(n, int) and isinstance(d, int) and isinstance(n_classes, int)
        return known and int(n or 0) - int(n_classes or 0) < int(d or 0)


class Diagnosis(Value):
    """All measures of one dataset under one network's weights. Accuracies are in percent."""

    dataset: str = Field(description="a registered name, or a folder's path")
    model: str
    image_px: AtLeastOne
    normalisation: str = Field("weights", description="of the images, as data.normalisation")
    layer: str = Field(POOLED, description="what enters the classifier, or a block's name")
    split: str = Field("train", description="whose features were measured")
    n_images: AtLeastOne = Field(description="N, of that split")
    n_val: AtLeastOne = Field(description="images that the two accuracies were judged by")
    n_features: AtLeastOne = Field(description="D")
    n_classes: int = Field(ge=2, description="C, those with images in the split")
    data_digest: str = Field(description="as in Facts")
    weights_digest: str = Field(description="as in Facts")
    device: str = ""
    seconds: NonNegative = 0.0
    seed: Count = 0
    versions: dict[str, str] = Field(default_factory=dict)
    measures: tuple[Measured, ...] = ()

    def measured(self, name: str) -> Measured | None:
        """Return the measure of this name, if it was tried."""
        return next((measure for measure in self.measures if measure.name == name), None)

    @property
    def is_conclusive(self) -> bool:
        """Tell whether both accuracies were measured, which all conclusions are made from."""
        return None not in (self.value("fixed_accuracy"), self.value("random_accuracy"))

    def value(self, name: str) -> float | None:
        """Return the value of this measure; None where it was not tried or has none."""
        found = self.measured(name)
        return None if found is None else found.value
