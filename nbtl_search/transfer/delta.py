"""DELTA: feature maps stay near those of the source network, channels weighted by attention.

    Omega = sum over hooks j of 1/2 c_j/(h_j w_j) sum_b sum_ch a_j,ch ||FM_b,j,ch - FM0_b,j,ch||^2

Li, Xiong, Wang, Rao, Liu, Chen and Huan 2019, "DELTA: DEep Learning Transfer using Feature Map
with Attention for convolutional networks", arXiv 1901.09229. The factor c/(h w) and the sum over
the batch are those of the authors' released code. With alpha_sum a weight for reduction = "sum",
alpha_mean = batch * alpha_sum gives the same loss with "mean".

Under gradient accumulation a "sum" is added up over the micro-batches as it is; a "mean" is
weighted by each one's share of the batch, as the cross-entropy is.

Attention comes from the importance of each channel for a classification:

    importance(ch) = mean over batches of [CE with the channel's output zero - CE]

Li et al. 2019, arXiv 1901.09229, section 3.3, zero the convolution's filter; here the output of the
tapped block is zeroed, which silences a channel after its normalisation and activation as well.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from nbtl_search.errors import DivergedError, SpecError
from nbtl_search.transfer.feature_hooks import FeatureHook, Map, channel_axis
from nbtl_search.transfer.source import at_least_float32, evaluating

Images = Float[Tensor, "_ _ _ _"]


class Importance(NamedTuple):
    """One channel's importance."""

    module: str
    channel: int
    value: float


def channel_importance(
    model: nn.Module,
    head: nn.Module,
    hooks: Sequence[FeatureHook],
    batches: Sequence[tuple[Images, Tensor]],
    *,
    done: Collection[tuple[str, int]] = frozenset(),
    n_at_once: int = 8,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Importance]:
    """Measure channel after channel, so that the caller can keep each result as it comes.

    Everything is in evaluation mode while it is measured, and every module in its own mode at each
    yield. The images pass the blocks below a hook once for `n_at_once` channels, and those above it
    once for each: a hook multiplies the batch where the channels are silenced. Channels are always
    taken together in the same way, so that a measurement that is resumed gives the same numbers.

    Args:
        model: a timm model with its pre-trained weights.
        head: a classifier of its pooled features, trained for these labels.
        hooks: of the model.
        batches: images and labels (indices, or probabilities of the classes).
        done: (module, channel) that need not be measured again.
        n_at_once: channels to silence in one pass; more are faster and need more memory.
        tick: called after every batch; what it raises ends the measurement.

    Raises:
        SpecError: there is no batch, n_at_once < 1, or a hook's output is no feature map.
    """
    if not batches or n_at_once < 1:
        message = (
            f"channel importance needs a batch and n_at_once >= 1, got {len(batches)} batches and "
            f"{n_at_once}; pass a few training batches"
        )
        raise SpecError(message)
    for hook in hooks:
        for first in range(0, hook.n_channels, n_at_once):
            channels = range(first, min(first + n_at_once, hook.n_channels))
            missing = [channel for channel in channels if (hook.module, channel) not in done]
            if missing:
                values = _rises(model, head, hook, channels, batches, tick)
                yield from (
                    Importance(hook.module, channel, values[channel - first]) for channel in missing
                )


@torch.no_grad()
def _rises(
    model: nn.Module,
    head: nn.Module,
    hook: FeatureHook,
    channels: range,
    batches: Sequence[tuple[Images, Tensor]],
    tick: Callable[[], None],
) -> list[float]:
    """Return how much the loss rises when each of the channels is silent, mean over batches."""
    total = torch.zeros(len(channels), dtype=torch.float64)
    for images, labels in batches:
        # The copy that keeps all channels comes first: what is compared passed together.
        with evaluating(model, head), _silencing(model, hook, channels):
            logits = head(_pooled(model, images))
        losses = _losses(logits, labels, n_copies=len(channels) + 1)
        total += (losses[1:] - losses[0]).cpu()
        tick()
    return [float(value) for value in total / len(batches)]


def _losses(logits: Tensor, labels: Tensor, *, n_copies: int) -> Float[Tensor, " copies"]:
    copies = at_least_float32(logits).unflatten(0, (n_copies, -1))
    return torch.stack([functional.cross_entropy(copy, labels) for copy in copies]).double()


def _silencing(model: nn.Module, hook: FeatureHook, channels: range) -> RemovableHandle:
    """Return a context in which a hook gives its output, and copies with one channel zero each."""

    def silence(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        axis = channel_axis(output, hook)
        copies: Tensor = output.repeat(len(channels) + 1, *[1] * (output.dim() - 1))
        for copy, channel in zip(copies.chunk(len(channels) + 1)[1:], channels, strict=True):
            copy.select(axis, channel).zero_()
        return copies

    # torch's handle of a hook is itself a context that removes it.
    return model.get_submodule(hook.module).register_forward_hook(silence)


def _pooled(model: Any, images: Tensor) -> Tensor:
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features


Reduction = Literal["sum", "mean"]
ATTENTION_TEMPERATURE = 5.0
# A spread as small as this is the rounding of equal numbers.
ROUNDING = 16


def delta(
    target_maps: Mapping[str, Map],
    source_maps: Mapping[str, Map],
    attention: Mapping[str, Float[Tensor, " _"]],
    *,
    reduction: Reduction = "sum",
) -> Float[Tensor, ""]:
    """Return the attention-weighted feature-map distance Omega, without its weight alpha.

    The source maps are constants. Half-precision maps are compared in float32.

    Args:
        target_maps: of the network that learns, by hook.
        source_maps: of the source network on the same images.
        attention: per hook, one weight a channel, with sum 1.
        reduction: over the batch; "sum" is the released code's.

    Raises:
        SpecError: the three do not have the same hooks, or maps differ in shape.
    """
    _check_same_taps(target_maps, source_maps, attention)
    terms = []
    for hook, target in target_maps.items():
        n_channels, n_positions = target.shape[1], math.prod(target.shape[2:])
        squares = _squared_offset(hook, target, source_maps[hook]).flatten(2).sum(dim=2)
        weighted = (squares * attention[hook].to(squares)).sum()
        terms.append(weighted * (n_channels / n_positions / 2))
    return _reduced(terms, target_maps, reduction)


def feature_map_distance(
    target_maps: Mapping[str, Map],
    source_maps: Mapping[str, Map],
    *,
    reduction: Reduction = "sum",
) -> Float[Tensor, ""]:
    """Return the plain distance, sum over hooks of 1/2 ||FM - FM0||^2: no attention, no c/(h w).

    Raises:
        SpecError: the two do not have the same hooks, or maps differ in shape.
    """
    _check_same_taps(target_maps, source_maps)
    terms = [
        _squared_offset(hook, target, source_maps[hook]).sum() / 2
        for hook, target in target_maps.items()
    ]
    return _reduced(terms, target_maps, reduction)


def attention(importance: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """Return a = softmax(z / 5), z = (importance - mean) / std, with the population's std.

    The weights of a hook sum to 1, so that equal importances give 1/c each; so does a std of 0.

    Raises:
        DivergedError: an importance is not finite.
    """
    x = importance.double()
    if not bool(torch.isfinite(x).all()):
        message = (
            "channel importances must be finite, got one that is not; train the head that they "
            "are measured with at a lower rate"
        )
        raise DivergedError(message)
    centred = x - x.mean()
    std = centred.square().mean().sqrt()
    if std <= ROUNDING * torch.finfo(x.dtype).eps * x.abs().max():
        return torch.full_like(importance, 1 / len(importance))
    a = functional.softmax(centred / std / ATTENTION_TEMPERATURE, dim=0)
    return a.to(importance.dtype)


def _squared_offset(hook: str, target: Map, source: Tensor) -> Map:
    if target.shape != source.shape:
        message = (
            f"maps of {hook!r} have one shape, got {tuple(target.shape)} and "
            f"{tuple(source.shape)}; run both networks on the same images"
        )
        raise SpecError(message)
    return (at_least_float32(target) - at_least_float32(source.detach())).square()


def _check_same_taps(first: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> None:
    for other in others:
        if not first or first.keys() != other.keys():
            message = (
                f"the same hooks must be given everywhere, at least one, got {sorted(first)} and "
                f"{sorted(other)}; record both networks with the same hooks"
            )
            raise SpecError(message)


def _reduced(
    terms: list[Tensor], maps: Mapping[str, Tensor], reduction: Reduction
) -> Float[Tensor, ""]:
    total = torch.stack(terms).sum()
    return total / len(next(iter(maps.values()))) if reduction == "mean" else total
