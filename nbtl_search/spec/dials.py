"""The dials of a recipe, which are searched, and the forms its methods take, which are not."""

from typing import Annotated, Any, Literal

from pydantic import Field

from nbtl_search.spec.values import Value

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

Delta = Literal["off", "plain", "attention"]
Dtnh = Literal["off", "conflict", "always"]


def _usually(value: Any, **limits: Any) -> Any:
    """Return a field that is not written out at its usual value.

    So recipes, checkpoints and fingerprints read as before there was such a setting.
    """
    return Field(value, exclude_if=lambda given: given == value, **limits)


class Dials(Value):
    """The non-binary settings: one point of the search space. A layer is a block or the head."""

    reinit_layers: AtLeastOne = Field(1, description="layers to reinitialise, head first")
    lr_high: Positive = Field(0.0025, description="learning rate of the blocks from n_low up")
    n_low: Count = Field(0, description="blocks, from the input, with the low rate")
    lr_low_ratio: Positive = Field(1.0, description="low rate = this x lr_high")
    lr_head_ratio: Positive = Field(1.0, description="rate of the classifier = this x lr_high")
    n_l2sp: Count = Field(0, description="blocks, from the input, pulled to pre-trained weights")
    alpha: NonNegative = Field(0.0, description="strength of that pull (L2-SP)")
    beta: NonNegative = Field(0.0, description="strength of the pull to zero (L2) elsewhere")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    frozen_layers: Count = _usually(0, description="blocks, from the input, that do not learn")
    source_head: Literal["replace", "keep"] = _usually(
        "replace", description="'keep' puts new layers on top of the source classifier"
    )
    delta: Delta = _usually("off", description="pull feature maps to the source network's (DELTA)")
    delta_alpha: Positive = _usually(0.01, description="strength of that pull")
    distill: NonNegative = _usually(0.0, description="weight of the source's predictions; 0 = off")
    distill_temperature: Positive = _usually(3.0, description="of both softmaxes")
    dtnh: Dtnh = _usually(
        "off", description="pulls to the source may not work against the task's gradient"
    )
    bss: NonNegative = _usually(0.0, description="strength of spectral shrinkage; 0 = off")
    stochnorm_p: Fraction = _usually(
        1.0, description="probability of the batch's statistics (1 = batch norm)"
    )
    decay_updates: Count = _usually(
        0, description="updates between steps of the rates; 0 = the schedule of [train]"
    )
    decay_factor: Fraction = _usually(0.9, description="factor of each of these steps")


class MethodSettings(Value):
    """The forms that methods take; their strengths are dials."""

    delta_taps: AtLeastOne = _usually(4, description="feature maps compared, from the last")
    delta_reduction: Literal["sum", "mean"] = _usually("sum", description="over the batch")
    delta_batches: AtLeastOne = _usually(
        4, description="batches of 32 images that attention is measured on"
    )
    distill_squared: bool = _usually(
        False,  # noqa: FBT003 a default
        description="multiply by the squared temperature",
    )
    distill_teacher: Literal["online", "precomputed"] = _usually(
        "online", description="what the source says of the images as augmented, or as they are"
    )
    dtnh_granularity: Literal["tensor", "block", "global"] = _usually(
        "tensor", description="what is projected together"
    )
    bss_k: AtLeastOne = _usually(1, description="singular values that are shrunk")
    source_hidden: tuple[AtLeastOne, ...] = _usually(
        (), description="units of hidden layers on top of a kept source classifier"
    )
