"""The network of a recipe: built, loaded, reinitialised, and anchored, in this order."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import nn

from nbtl_search.data.images import ImageFormat
from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import SpecError
from nbtl_search.network.device import Placement, derive_seed, seeded
from nbtl_search.network.grouped import train_in_fp32
from nbtl_search.network.weights import (
    Weights,
    load_weights,
    read_weights,
    source_classes,
)
from nbtl_search.space import impossible
from nbtl_search.spec import Dials, ModelSettings, Recipe
from nbtl_search.transfer import stochnorm
from nbtl_search.transfer.distillation import SourceHead, source_head
from nbtl_search.transfer.freezing import Frozen, freeze
from nbtl_search.transfer.layers import Layers, layers_of
from nbtl_search.transfer.penalties import Anchors
from nbtl_search.transfer.reinit import Fresh, fresh_values, reinitialise
from nbtl_search.transfer.source import frozen_copy
from nbtl_search.transfer.source_classifier import append_layers, kept_layers

Triple = tuple[float, float, float]
Statistics = tuple[Triple, Triple]

ON_CPU = Placement(device=torch.device("cpu"), bf16=False)
KNOWN_STATISTICS: dict[str, Statistics] = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "inception": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
}


@dataclass(frozen=True, kw_only=True)
class SourceNetwork:
    """A network as its pre-trained weights make it, in evaluation mode; it never changes."""

    name: str
    """timm's name of the architecture."""
    model: nn.Module
    head: SourceHead | None
    """The classifier that came with the weights; None where it was not asked for, or is missing."""
    image_format: ImageFormat
    weights_digest: str
    placement: Placement
    """Where the model is, and the arithmetic of the run beside it."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network ready to train, and what it needs to know about itself."""

    model: nn.Module
    layers: Layers
    anchors: Anchors
    """Copies of the pre-trained values w0, by name; empty where the weights are random."""
    image_format: ImageFormat
    weights_digest: str
    frozen: Frozen = field(default_factory=lambda: Frozen(blocks=()))
    """The blocks that do not learn."""
    source: SourceNetwork | None = None
    """None where no method looks at it; its head is there where something is distilled."""


def build(
    recipe: Recipe,
    *,
    n_classes: int,
    home: Path,
    placement: Placement = ON_CPU,
    prepared: Prepared | None = None,
    weights: Weights | None = None,
) -> Network:
    """Build a recipe's network.

    Load the pre-trained weights, copy the source network where a method looks at it, replace or
    extend the classifier, reset the last blocks, and only then copy w0 of what is still
    pre-trained, freeze, and make batch norm stochastic. New layers are always fresh, for 1000
    classes too. Random numbers come from train.seed, and the global random state is untouched.

    Args:
        recipe: all settings of the run.
        n_classes: of the classifier.
        home: below it downloads are cached.
        placement: where the network goes.
        prepared: the data, needed only where their own statistics normalise them.
        weights: of the recipe's model, where they have been read already.

    Raises:
        SpecError: an unknown model, or dials that do not fit it.
        WeightsError: the weights cannot be had or do not fit.
    """
    dials = recipe.dials
    config = pretrained_config(recipe.model)
    weights = weights or read_weights(recipe.model, home=home)
    image_format = _image_format(recipe, {**config, **weights.config}, prepared)
    keeps = dials.source_head == "keep"
    model, fresh = _loaded(recipe, weights, n_classes=n_classes)
    layers = layers_of(model)
    # After loading and before anything is reset: what is reset is lost to the copy.
    source = _source(recipe, model, weights, image_format, placement)
    generator = torch.Generator().manual_seed(derive_seed("reinitialise", recipe.train.seed))
    if keeps:
        hidden = recipe.methods.source_hidden
        append_layers(model, n_classes=n_classes, hidden=hidden, generator=generator)
    else:
        reinitialise(layers, dials.reinit_layers, generator=generator, fresh=fresh)
    # After the source was copied: that one answers as its weights were trained.
    if dials.stochnorm_p < 1:
        stochnorm.convert(model, p=dials.stochnorm_p)
    model = _to_train(model, placement, home)
    # Anew: blocks were replaced above, and the anchors must be copies of the placed parameters, on
    # their device and in their memory format.
    layers = kept_layers(model) if keeps else layers_of(model)
    return Network(
        model=model,
        layers=layers,
        anchors=_anchors(layers, dials.reinit_layers) if weights.pretrained else {},
        image_format=image_format,
        weights_digest=weights.digest,
        frozen=freeze(layers, dials.frozen_layers, reinit_layers=dials.reinit_layers),
        source=source,
    )


def _loaded(recipe: Recipe, weights: Weights, *, n_classes: int) -> tuple[nn.Module, Fresh]:
    """Create the model and load the weights, with their classifier where that is kept.

    What it had before they were loaded, and nothing else can give, comes with it.
    """
    dials = recipe.dials
    keeps = dials.source_head == "keep"
    with_source = keeps and weights.pretrained
    n_created = source_classes(weights, recipe.model.name) if with_source else n_classes
    # Seeds by purpose: how many layers are reinitialised does not move what other draws give.
    with seeded(derive_seed("initialise", recipe.train.seed)):
        model: nn.Module = timm.create_model(recipe.model.name, num_classes=n_created)
    layers = layers_of(model)
    _check_possible(dials, layers, pretrained=weights.pretrained)
    fresh = fresh_values(layers)
    if weights.pretrained:
        load_weights(model, weights, model_name=recipe.model.name, classifier=keeps)
    return model, fresh


def _check_possible(dials: Dials, layers: Layers, *, pretrained: bool) -> None:
    reasons = impossible(dials, n_blocks=layers.n_blocks, pretrained=pretrained)
    if reasons:
        message = f"these dials cannot be trained: {'; '.join(reasons)}"
        raise SpecError(message)


def _source(
    recipe: Recipe,
    model: nn.Module,
    weights: Weights,
    image_format: ImageFormat,
    placement: Placement,
) -> SourceNetwork | None:
    """Return the source network, as far as the dials look at it."""
    if recipe.dials.delta == "off" and not recipe.dials.distill:
        return None
    head = source_head(model, weights.state) if recipe.dials.distill else None
    return SourceNetwork(
        name=recipe.model.name,
        model=_placed(frozen_copy(model), placement),
        head=None if head is None else head.to(placement.device),
        image_format=image_format,
        weights_digest=weights.digest,
        placement=placement,
    )


def _placed(model: nn.Module, placement: Placement) -> nn.Module:
    moved: nn.Module = model.to(device=placement.device)
    return moved.to(memory_format=placement.memory_format)


def _to_train(model: nn.Module, placement: Placement, home: Path) -> nn.Module:
    model = _placed(model, placement)
    if placement.mixed:
        train_in_fp32(model, home=home)
    return model


def pretrained_config(settings: ModelSettings) -> dict[str, Any]:
    """Return what timm knows about a model's weights: mean, interpolation, input size.

    Raises:
        SpecError: timm has no model of this name.
    """
    name = settings.name
    if ":" in name or not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "timm.list_models() names them"
        message = f"model.name must be a timm model, got {name!r}; {hint}"
        raise SpecError(message)
    config: Any = timm.get_pretrained_cfg(name)
    return dict(config.to_dict()) if config is not None else {}


def _image_format(
    recipe: Recipe, config: Mapping[str, Any], prepared: Prepared | None
) -> ImageFormat:
    size_px = int(config.get("input_size", (3, recipe.data.image_px))[-1])
    if config.get("fixed_input_size", False) and size_px != recipe.data.image_px:
        message = (
            f"data.image_px == {size_px} for model {recipe.model.name!r}, which takes no other "
            f"size, got {recipe.data.image_px}; set it, or choose another model"
        )
        raise SpecError(message)
    mean = config.get("mean", IMAGENET_DEFAULT_MEAN)
    std = config.get("std", IMAGENET_DEFAULT_STD)
    image_format = ImageFormat(
        image_px=recipe.data.image_px,
        crop_pct=float(config.get("crop_pct") or 0.875),
        interpolation=str(config.get("interpolation") or "bicubic"),
        mean=_triple(mean),
        std=_triple(std),
    )
    return _normalised(recipe, image_format, prepared)


def _normalised(
    recipe: Recipe, image_format: ImageFormat, prepared: Prepared | None
) -> ImageFormat:
    """Apply data.normalisation; the authors' code has ImageNet's where nothing else is set."""
    choice = recipe.data.normalisation
    if recipe.compat == "authors" and choice == "weights":
        choice = "imagenet"
    if choice == "weights":
        return image_format
    if choice == "dataset":
        if prepared is None:
            message = (
                "normalisation = 'dataset' needs the prepared data, got none; pass `prepared`, or "
                "set data.normalisation to 'weights', 'imagenet' or 'inception'"
            )
            raise SpecError(message)
        measured = prepared.statistics()
        mean, std = measured.mean, measured.std
    else:
        mean, std = KNOWN_STATISTICS[choice]
    return replace(image_format, mean=mean, std=std)


def _anchors(layers: Layers, reinit_layers: int) -> Anchors:
    return {
        name: parameter.detach().clone()
        for block in layers.pretrained(reinit_layers)
        for name, parameter in block.parameters
    }


def _triple(values: Any) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
