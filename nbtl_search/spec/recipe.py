"""Recipe: every setting of one training run, its dials above all, and what a run gives back.

Texts of recipes lie in checkpoints, databases and exported models, and fingerprints are made from
them: a new field has a default that is not written out (`_usually`), and none is renamed.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from nbtl_search.errors import SpecError
from nbtl_search.spec.values import Value

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percentage = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]

HeadStart = Literal["random", "logistic"]
Delta = Literal["off", "plain", "attention"]
Dtnh = Literal["off", "conflict", "always"]


def _usually(value: Any, **limits: Any) -> Any:
    """Return a field that is not written out at its usual value.

    So recipes, checkpoints and fingerprints read as before there was such a setting.
    """
    return Field(value, exclude_if=lambda given: given == value, **limits)


def _unusual(value: Value, names: Iterable[str]) -> list[str]:
    """Return those of the fields that do not have their default."""
    fields = type(value).model_fields
    return [name for name in names if getattr(value, name) != fields[name].default]


class Dials(Value):
    """The non-binary settings: one point of the search space. A layer is a block or the head."""

    reinit_layers: AtLeastOne = Field(1, description="layers to reinitialise, head first")
    lr_high: Positive = Field(0.0025, description="learning rate of the blocks from n_low up")
    n_low: Count = Field(0, description="blocks, from the input, with the low rate")
    lr_low_ratio: Positive = Field(1.0, description="low rate = this x lr_high")
    lr_head_ratio: Positive = Field(1.0, description="rate of the classifier = this x lr_high")
    layer_decay: float = _usually(
        1.0, gt=0, le=1, description="each block learns at this x the rate of the one above it"
    )
    n_l2sp: Count = Field(0, description="blocks, from the input, pulled to pre-trained weights")
    alpha: NonNegative = Field(0.0, description="strength of that pull (L2-SP)")
    beta: NonNegative = Field(0.0, description="strength of the pull to zero (L2) elsewhere")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; AdamW's beta1")
    frozen_layers: Count = _usually(0, description="blocks, from the input, that do not learn")
    source_head: Literal["replace", "keep"] = _usually(
        "replace", description="'keep' puts new layers on top of the source classifier"
    )
    head_start: HeadStart = _usually(
        "random", description="'logistic' fits the classifier to the weights' own features first"
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


# Not written out: recipes, checkpoints and fingerprints read as before there was another choice.
_USUAL_TRAIN_ON: Final = "train"


class DataSettings(Value):
    """Which images, in which split."""

    dataset: str = Field(description="a registered name, or the path of a folder of images")
    root: str | None = Field(None, description="where the images lie, for a registered name")
    partition: int = Field(1, ge=1, le=10, description="the official partition, for dtd")
    val_fraction: float = Field(0.2, gt=0, lt=1, description="for a folder without val/")
    test_fraction: float = Field(0.2, ge=0, lt=1, description="for a folder without test/")
    split_seed: Count = Field(0, description="of the folder's own split, and of textures")
    image_px: int = Field(299, ge=16, le=2048, description="side of the network's input")
    normalisation: Literal["weights", "imagenet", "dataset", "inception"] = Field(
        "weights", description="mean and standard deviation; 'weights' = what the weights expect"
    )
    train_on: Literal["train", "train+val"] = Field(
        _USUAL_TRAIN_ON,
        description="'train+val' learns from the validation images too, and validates on none",
        exclude_if=lambda train_on: train_on == _USUAL_TRAIN_ON,
    )

    @property
    def learnt_splits(self) -> tuple[str, ...]:
        """Return the splits that are learnt from: ('train',) or ('train', 'val')."""
        return tuple(self.train_on.split("+"))


class ModelSettings(Value):
    """Which network, and where its pre-trained weights come from."""

    name: str = Field("inception_v4", description="a timm model name")
    weights: str = Field(
        "timm",
        description="'timm' (hub, cached), 'shipped' (the demo's), a .safetensors or .pth file, "
        "a local Hugging Face directory, or 'random' (no transfer, said in words)",
    )


OF_STRENGTH: Final = ("crop_scale", "randaugment", "mixup", "erasing")
"""Parts of the augmentation that its strength decides."""
OF_EPOCHS: Final = ("warmup_epochs", "warmup_lr", "decay_epochs", "decay_rate")
"""Settings of the schedules that are counted in epochs; those of one_cycle are `OF_CYCLE`."""
OF_CYCLE: Final = ("rise",)

# The area from which crops are taken at strength 0 and 1; 1 is the authors' command.
_LEAST_AREA: Final = (0.25, 0.08)
_WEAK_UPDATES: Final = 400
_STRONG_UPDATES: Final = 4000


class AugmentSettings(Value):
    """Training augmentation; each part is switched off by its zero or empty value."""

    crop_scale: tuple[Positive, Positive] = Field(
        (0.08, 1.0), description="area of the random resized crop; (1, 1) = the evaluation crop"
    )
    crop_ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="its aspect ratio")
    hflip: Fraction = Field(0.5, description="probability of a horizontal flip")
    randaugment: str = Field("rand-m9-mstd0.5-inc1", description="timm's policy text; '' = off")
    mixup: NonNegative = Field(0.2, description="alpha of the Beta distribution; 0 = off")
    erasing: Fraction = Field(0.5, description="probability of random erasing (pixel mode)")
    label_smoothing: Fraction = Field(0.1, description="0 = off")
    strength: Fraction | Literal["budget"] | None = _usually(
        None,
        description="0 = mild crops and flips, 1 = the authors' command, in the place of "
        "crop_scale, randaugment, mixup and erasing; 'budget' = what a study's updates bear",
    )

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        set_singly = _unusual(self, OF_STRENGTH)
        if self.strength is not None and set_singly:
            message = (
                f"strength decides {set_singly[0]}, got both; leave strength out, or set it alone"
            )
            raise ValueError(message)
        return self

    def for_updates(self, n: int) -> "AugmentSettings":
        """Return the settings with the strength that a run of n updates bears, if it is to.

        Strong augmentation needs a long run to pay: it cost points at 100 updates
        (`benchmarks/README.md`). That it grows with the logarithm, and between which numbers, is
        judgement.
        """
        if self.strength != "budget":
            return self
        share = math.log(max(n, 1) / _WEAK_UPDATES) / math.log(_STRONG_UPDATES / _WEAK_UPDATES)
        return self.replace(strength=round(min(1.0, max(0.0, share)), 2))

    @property
    def parts(self) -> "AugmentSettings":
        """Return each part as the strength makes it.

        Raises:
            SpecError: the strength is still to be taken from a study's budget.
        """
        if self.strength is None:
            return self
        if self.strength == "budget":
            message = (
                "augment.strength must be a number in a recipe, got 'budget', which `create` "
                "replaces; set it to 0 for short runs"
            )
            raise SpecError(message)
        mild, hard = _LEAST_AREA
        magnitude = round(9 * self.strength)
        return self.replace(
            strength=None,
            crop_scale=(mild * (hard / mild) ** self.strength, 1.0),
            randaugment=f"rand-m{magnitude}-mstd0.5-inc1" if magnitude else "",
            mixup=0.2 * self.strength,
            erasing=0.5 * self.strength,
        )


class TrainSettings(Value):
    """How long and how a run trains; what is searched is in `Dials`."""

    epochs: AtLeastOne = Field(30, description="length of the schedule")
    batch_size: int = Field(32, ge=2, description="images per update")
    micro_batch: int | None = Field(
        None, ge=1, description="images per forward; None = as many as the memory holds"
    )
    schedule: Literal["step", "cosine", "one_cycle"] = Field(
        "step", description="of the learning rates; one_cycle is counted in updates, not in epochs"
    )
    rise: Fraction = _usually(0.25, description="share of the updates in which one_cycle rises")
    warmup_epochs: Count = Field(3, description="epochs from `warmup_lr` to each group's rate")
    warmup_lr: Positive = Field(1e-4, description="where the warm-up starts, for every group")
    decay_epochs: Positive = Field(10.0, description="epochs between steps (step schedule)")
    decay_rate: Fraction = Field(0.9, description="factor of each step (step schedule)")
    optimiser: Literal["sgd", "adamw"] = _usually(
        "sgd", description="with adamw alpha and beta are decoupled from the gradient"
    )
    nesterov: bool = Field(True, description="Nesterov's form of momentum (sgd)")
    weight_decay: float | None = Field(
        None, ge=0, description="the optimiser's own; None = 0, or 5e-4 where compat = 'authors'"
    )
    penalty_scope: Literal["no_norm", "weights", "all"] = Field(
        "no_norm", description="which parameters L2 and L2-SP cover"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="of the forward pass")
    n_threads: int | None = Field(
        None, ge=1, description="CPU threads of a slot; part of the result (bit for bit)"
    )
    n_loaders: int | None = Field(
        None,
        ge=0,
        description="processes that decode and augment; None = none on a CPU, up to 8 beside a GPU",
    )
    seed: Count = Field(0, description="of initialisation, data order and augmentation")

    @model_validator(mode="after")
    def _of_this_schedule(self) -> Self:
        ignored = _unusual(self, OF_EPOCHS if self.schedule == "one_cycle" else OF_CYCLE)
        if ignored:
            message = (
                f"schedule {self.schedule!r} has no {ignored[0]}, got "
                f"{getattr(self, ignored[0])!r}; leave it out, or choose another schedule"
            )
            raise ValueError(message)
        if self.optimiser == "adamw" and not self.nesterov:
            message = "optimiser 'adamw' has no nesterov, got False; leave it out"
            raise ValueError(message)
        return self

    def updates_per_epoch(self, n_train: int) -> int:
        """Return the batches of an epoch: one short batch where there are few images."""
        return max(1, n_train // self.batch_size)


class Recipe(Value):
    """Every setting of one run: the same recipe gives the same result, bit for bit on a CPU."""

    data: DataSettings
    model: ModelSettings = ModelSettings()
    augment: AugmentSettings = AugmentSettings()
    train: TrainSettings = TrainSettings()
    dials: Dials = Dials()
    compat: Literal["paper", "authors"] = Field(
        "paper", description="'authors' reproduces the released code where it departs"
    )
    methods: MethodSettings = Field(
        MethodSettings(), exclude_if=lambda methods: methods == MethodSettings()
    )


SettingValue = bool | int | float | str


class KnownRecipe(Value):
    """A recipe worth trying before the sampler has learnt anything."""

    name: str = Field(description="a short name, shown beside the trial")
    reason: str = Field("", description="why it is here, with its source")
    dials: dict[str, SettingValue] = Field(
        default_factory=dict,
        description="as Dials; n_low and n_l2sp may be 'all' or a fraction such as '14/22'",
    )
    default_below: Count = _usually(
        0, description="in runs of fewer updates it is the default, and the default is a recipe"
    )


class Facts(Value):
    """What was measured of a study's data and weights when it was created; workers compare."""

    n_blocks: AtLeastOne
    n_classes: int = Field(ge=2)
    n_train: AtLeastOne
    n_val: AtLeastOne
    n_test: Count
    data_digest: str = Field(description="of the manifest: names, labels, splits and contents")
    weights_digest: str = Field(description="of the weights file; 'random' where there is none")
    linear_head: bool = _usually(
        True,  # noqa: FBT003 a default
        description="whether the classifier is one linear layer of the pooled features",
    )

    @property
    def pretrained(self) -> bool:
        """Tell whether there are weights to transfer."""
        return self.weights_digest != "random"

    @property
    def fits_head(self) -> bool:
        """Tell whether the classifier can start from a regression on the weights' features."""
        return self.pretrained and self.linear_head


class Epoch(Value):
    """What one epoch gave. Accuracies are percentages of the validation set.

    The three validation figures are None where the validation images are trained on.
    """

    epoch: AtLeastOne
    train_loss: float
    val_loss: float | None = None
    val_top1: Percentage | None = None
    val_top5: Percentage | None = None
    lr: float = Field(description="of the high group, during this epoch")
    n_images: AtLeastOne = Field(description="training images seen in this epoch")
    seconds: NonNegative = Field(description="wall clock of training and validation")
    micro_batch: AtLeastOne = Field(description="images per forward that the memory held")

    def same_result(self, other: Self) -> bool:
        """Tell whether two epochs agree in everything but the time they took."""
        hidden = {"seconds", "micro_batch"}
        return self.model_dump(exclude=hidden) == other.model_dump(exclude=hidden)


def best_epoch(epochs: Iterable[Epoch]) -> Epoch | None:
    """Return the first with the highest validation top-1; None where none was validated."""
    best: tuple[float, Epoch] | None = None
    for epoch in epochs:
        if epoch.val_top1 is not None and (best is None or epoch.val_top1 > best[0]):
            best = epoch.val_top1, epoch
    return None if best is None else best[1]
