"""DELTA: feature maps stay near those of the source network, channels weighted by attention.

    Omega = sum over hooks j of 1/2 c_j/(h_j w_j) sum_b sum_ch a_j,ch ||FM_b,j,ch - FM0_b,j,ch||^2

Li, Xiong, Wang, Rao, Liu, Chen and Huan 2019, "DELTA: DEep Learning Transfer using Feature Map
with Attention for convolutional networks", arXiv 1901.09229. The factor c/(h w) and the sum over
the batch are those of the authors' released code. With alpha_sum a weight for reduction = "sum",
alpha_mean = batch * alpha_sum gives the same loss with "mean".

Under gradient accumulation a "sum" is added up over the micro-batches as it is; a "mean" is
weighted by each one's share of the batch, as the cross-entropy is.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nbtl_search.errors import DivergedError, SpecError
from nbtl_search.transfer.feature_hooks import Map
from nbtl_search.transfer.source import at_least_float32

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
