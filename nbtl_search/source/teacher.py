"""The signals of the source network that a run's methods learn from, made ready once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import MethodError, SpecError
from nbtl_search.network.model import Network, SourceNetwork
from nbtl_search.network.weights import RANDOM
from nbtl_search.source.attention import channel_attention
from nbtl_search.source.features import Features, extract
from nbtl_search.spec import Progress, Recipe
from nbtl_search.transfer.distillation import SourceHead
from nbtl_search.transfer.feature_hooks import FeatureHook, hooks_of
from nbtl_search.transfer.layers import Layers
from nbtl_search.transfer.reinit import reset_layers


@dataclass(frozen=True, kw_only=True)
class SourceSignals:
    """What the source network says: of images that are passed to it, or noted down before."""

    model: nn.Module | None = None
    head: SourceHead | None = None
    hooks: tuple[FeatureHook, ...] = ()
    attention: Mapping[str, Float[Tensor, " _"]] | None = None
    """Per hook a weight for each channel; None for the plain distance."""
    logits: Float[Tensor, "images classes"] | None = None
    """Of every training image as it is; None where the model is asked."""


def source_signals(
    recipe: Recipe,
    network: Network,
    *,
    prepared: Prepared,
    home: Path,
    measuring: Progress | None = None,
) -> SourceSignals:
    """Return what the source network says, as far as the recipe's methods listen.

    Attention and precomputed logits are measured now, or read where another run has kept them.

    Raises:
        SpecError: the model has no feature maps to compare, or none that keeps its weights; the
            images are mixed, which precomputed logits are not of.
        MethodError: the weights have no classifier to listen to.
        DivergedError: attention cannot be measured.
        DataError: what is kept cannot be written.
    """
    source = network.source
    if source is None:
        return SourceSignals()
    hooks, attention, logits = compared_hooks(recipe, network.layers, source.model), None, None
    if hooks and recipe.dials.delta == "attention":
        attention = _attention(
            recipe, source, hooks, prepared=prepared, home=home, measuring=measuring
        )
    if recipe.dials.distill and recipe.methods.distill_teacher == "precomputed":
        logits = teacher_logits(recipe, source, prepared=prepared, home=home, progress=measuring)
        logits = logits.to(source.placement.device)
    asked = hooks or (recipe.dials.distill and logits is None)
    return SourceSignals(
        model=source.model if asked else None,
        head=source.head,
        hooks=hooks,
        attention=attention,
        logits=logits,
    )


def compared_hooks(recipe: Recipe, layers: Layers, source: nn.Module) -> tuple[FeatureHook, ...]:
    """Return the feature maps that DELTA compares: of modules in which nothing starts anew.

    Raises:
        SpecError: the model has no feature maps, or none of them keeps its weights.
    """
    if recipe.dials.delta == "off":
        return ()
    new = frozenset(_new_parameters(layers, recipe))
    hooks = tuple(
        hook
        for hook in hooks_of(source, n=recipe.methods.delta_taps)
        if not _is_new(source, hook, new)
    )
    if not hooks:
        message = (
            "DELTA compares feature maps of layers that keep their weights, got none with "
            f"reinit_layers = {recipe.dials.reinit_layers} and delta_taps = "
            f"{recipe.methods.delta_taps}; reinitialise fewer layers, or compare more maps"
        )
        raise SpecError(message)
    return hooks


def _is_new(source: nn.Module, hook: FeatureHook, new: frozenset[str]) -> bool:
    """Tell whether a hook's module starts anew; without weights, whether what is before does."""
    own = [name for name, _ in source.named_parameters() if name.startswith(f"{hook.module}.")]
    return not new.isdisjoint(own or _just_before(source, hook.module))


def _just_before(source: nn.Module, wanted: str) -> list[str]:
    """Return the parameters of the last module that has some and comes before this one."""
    found: list[str] = []
    for name, module in source.named_modules():
        if name == wanted:
            break
        found = [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)] or found
    return found


def _new_parameters(layers: Layers, recipe: Recipe) -> list[str]:
    new = reset_layers(layers, recipe.dials.reinit_layers)
    return [name for block in new for name, _ in block.parameters]


def _attention(
    recipe: Recipe,
    source: SourceNetwork,
    hooks: tuple[FeatureHook, ...],
    *,
    prepared: Prepared,
    home: Path,
    measuring: Progress | None,
) -> dict[str, Tensor]:
    """Return the attention of the hooks; it is measured on all of them, whatever starts anew.

    So the trials of a study share one measurement, however many layers each reinitialises.
    """
    found = channel_attention(
        source,
        hooks_of(source.model, n=recipe.methods.delta_taps),
        n_batches=recipe.methods.delta_batches,
        prepared=prepared,
        home=home,
        progress=measuring,
    )
    return {hook.module: found[hook.module].to(source.placement.device) for hook in hooks}


def teacher_logits(
    recipe: Recipe,
    source: SourceNetwork,
    *,
    prepared: Prepared,
    home: Path,
    progress: Progress | None = None,
) -> Float32[Tensor, "n z"]:
    """Return the source classes' logits of every image that is trained on, on the CPU.

    Learning without forgetting, Li and Hoiem 2016, arXiv 1606.09282, section 3, takes the old
    network's answers before training begins. Here they are of the images as they are, not as
    augmented.

    Rows are in the order of the dataset, split after split, so that those of a batch are
    `logits[batch.indices]`. They follow from features that are kept for next time, of images under
    the evaluation transform, in float32.

    Args:
        recipe: of which the training images and what is done to them count.
        source: the network of the recipe's weights, with its head.
        prepared: the recipe's data.
        home: below it the features are kept.
        progress: called with (images done, images in all).

    Raises:
        SpecError: images are mixed, or the weights are random.
        DataError: `home` cannot be written.
        MethodError: the weights have no classifier of pooled features.
    """
    check_precomputable(recipe)
    splits = recipe.data.learnt_splits
    found = extract(prepared, source, home=home, splits=splits, progress=progress)
    weight, bias = _head(recipe, found)
    logits = [torch.from_numpy(getattr(found, split)) @ weight.T + bias for split in splits]
    return torch.cat(logits)


def check_precomputable(recipe: Recipe) -> None:
    """Refuse settings under which logits from before training are of other images.

    Raises:
        SpecError: images are mixed, or the weights are random.
    """
    mixup = recipe.augment.parts.mixup
    if mixup > 0:
        message = (
            "methods.distill_teacher = 'precomputed' needs augment.mixup == 0, since its logits "
            f"are of unmixed images, got {mixup}; set mixup to 0, or augment.strength where that "
            "is given, or the teacher to 'online'"
        )
        raise SpecError(message)
    if recipe.model.weights == RANDOM:
        message = (
            "dials.distill needs pre-trained weights: model.weights != 'random', got 'random'; "
            "name 'timm', 'shipped', a file or a folder, or set distill to 0"
        )
        raise SpecError(message)


def _head(recipe: Recipe, found: Features) -> tuple[Float32[Tensor, "z d"], Float32[Tensor, " z"]]:
    if found.head_weight is None or found.head_bias is None:
        message = (
            "a teacher's logits need weights with their linear classifier, got "
            f"{recipe.model.weights!r} of {recipe.model.name!r} without one; use weights that "
            "have it, or set dials.distill to 0"
        )
        raise MethodError(message)
    return torch.from_numpy(found.head_weight), torch.from_numpy(found.head_bias)
