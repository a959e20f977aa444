"""The source network of a run: what of it the methods look at, made ready once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import SpecError
from nbtl_search.network.device import Placement
from nbtl_search.network.model import Network
from nbtl_search.source.attention import channel_attention
from nbtl_search.source.features import Progress
from nbtl_search.source.logits import teacher_logits
from nbtl_search.spec import Recipe
from nbtl_search.transfer.distillation import SourceHead
from nbtl_search.transfer.feature_hooks import Tap, taps_of
from nbtl_search.transfer.layers import Layers
from nbtl_search.transfer.reinit import reset_layers


@dataclass(frozen=True, kw_only=True)
class Source:
    """What the source network says: of images that are passed to it, or noted down before."""

    model: nn.Module | None = None
    head: SourceHead | None = None
    taps: tuple[Tap, ...] = ()
    attention: Mapping[str, Float[Tensor, " _"]] | None = None
    """Per tap a weight for each channel; None for the plain distance."""
    logits: Float[Tensor, "images classes"] | None = None
    """Of every training image as it is; None where the model is asked."""


def source_of(
    recipe: Recipe,
    network: Network,
    *,
    prepared: Prepared,
    home: Path,
    placement: Placement,
    measuring: Progress | None = None,
) -> Source:
    """Return what the source network says, as far as the recipe's methods listen.

    Attention and precomputed logits are measured now, or read where another run has kept them.

    Raises:
        SpecError: the model has no feature maps to compare, or none that keeps its weights; the
            images are mixed, which precomputed logits are not of.
        WeightsError: the weights have no classifier to listen to.
        DivergedError: attention cannot be measured.
        DataError: what is kept cannot be written.
    """
    source = network.source
    if source is None:
        return Source()
    taps, attention, logits = compared_taps(recipe, network.layers, source), None, None
    if taps and recipe.dials.delta == "attention":
        attention = _attention(
            recipe,
            network,
            source,
            taps,
            prepared=prepared,
            home=home,
            placement=placement,
            measuring=measuring,
        )
    if recipe.dials.distill and recipe.methods.distill_teacher == "precomputed":
        logits = teacher_logits(recipe, prepared=prepared, home=home, progress=measuring)
        logits = logits.to(placement.device)
    asked = taps or (recipe.dials.distill and logits is None)
    return Source(
        model=source if asked else None,
        head=network.source_head,
        taps=taps,
        attention=attention,
        logits=logits,
    )


def compared_taps(recipe: Recipe, layers: Layers, source: nn.Module) -> tuple[Tap, ...]:
    """Return the feature maps that DELTA compares: of modules in which nothing starts anew.

    Raises:
        SpecError: the model has no feature maps, or none of them keeps its weights.
    """
    if recipe.dials.delta == "off":
        return ()
    new = frozenset(_new_parameters(layers, recipe))
    taps = tuple(
        tap for tap in taps_of(source, n=recipe.methods.delta_taps) if not _is_new(source, tap, new)
    )
    if not taps:
        message = (
            "DELTA compares feature maps of layers that keep their weights, got none with "
            f"reinit_layers = {recipe.dials.reinit_layers} and delta_taps = "
            f"{recipe.methods.delta_taps}; reinitialise fewer layers, or compare more maps"
        )
        raise SpecError(message)
    return taps


def _is_new(source: nn.Module, tap: Tap, new: frozenset[str]) -> bool:
    """Tell whether a tap's module starts anew; one without weights, whether what is before does."""
    own = [name for name, _ in source.named_parameters() if name.startswith(f"{tap.module}.")]
    return not new.isdisjoint(own or _just_before(source, tap.module))


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
    network: Network,
    source: nn.Module,
    taps: tuple[Tap, ...],
    *,
    prepared: Prepared,
    home: Path,
    placement: Placement,
    measuring: Progress | None,
) -> dict[str, Tensor]:
    """Return the attention of the taps; it is measured on all of them, whatever starts anew."""
    found = channel_attention(
        recipe,
        model=source,
        taps=taps_of(source, n=recipe.methods.delta_taps),
        prepared=prepared,
        home=home,
        placement=placement,
        format=network.image_format,
        weights_digest=network.weights_digest,
        progress=measuring,
    )
    return {tap.module: found[tap.module].to(placement.device) for tap in taps}
