"""The source network beside the one that learns: a copy that never changes."""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose parameters need no gradient.

    Take it after the weights are loaded and before anything is reset. It is no part of the model
    it was copied from, so neither `model.train()` nor its optimiser nor its export reaches it.
    """
    source = copy.deepcopy(model).eval()
    return source.requires_grad_(requires_grad=False)


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put models into evaluation mode, and every module back into its own mode afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    with ExitStack() as restored:
        for module, training in modes:
            restored.callback(setattr, module, "training", training)
        for model in models:
            model.eval()
        yield


def at_least_float32(x: Tensor) -> Tensor:
    """Return bf16 and fp16 tensors as float32, and all others as they are."""
    return x if x.dtype == torch.float64 else x.float()
