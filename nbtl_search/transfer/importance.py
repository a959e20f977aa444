"""Importance of each channel of a feature map for a classification: the base of attention.

    importance(ch) = mean over batches of [CE with the channel's output zero - CE]

Li et al. 2019, arXiv 1901.09229, section 3.3, zero the convolution's filter; here the output of the
tapped block is zeroed, which silences a channel after its normalisation and activation as well.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from nbtl_search.errors import SpecError
from nbtl_search.transfer.feature_hooks import FeatureHook, channel_axis
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
