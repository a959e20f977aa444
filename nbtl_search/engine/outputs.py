"""What a pre-trained network gives at a layer, and the classifier that came with its weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from nbtl_search.engine.weights import Weights
from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.spec import POOLED
from nbtl_search.transfer import distillation
from nbtl_search.transfer.layers import Layers

Output = Callable[[Float[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]
Head = tuple[Float32[np.ndarray, "z d"], Float32[np.ndarray, " z"]]


def output_at(model: nn.Module, layers: Layers, layer: str) -> Output:
    """Return the function from images to features at a layer.

    'pooled' is what enters the classifier. A number is a block, from 0 at the input: the mean of
    its output over places (or tokens). A block of several modules, such as convolution and
    normalisation, gives the output of its last one.

    Raises:
        SpecError: the network has no such layer, or it has no module of its own.
    """
    if layer == POOLED:
        return _Pooled(model)
    return _Block(model, _block_module(model, layers, layer), layer)


def source_head(model: nn.Module, weights: Weights) -> Head | None:
    """Return weight and bias of the classifier that came with the weights, if they have one.

    So the source logits are `features @ weight.T + bias`.
    """
    try:
        head = distillation.source_head(model, weights.state)
    except (SpecError, WeightsError):
        return None
    weight = head.weight.numpy()
    if len(weight) < 2:
        return None
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias
    return weight, bias.numpy()


class _Pooled:
    """timm's features, as they enter the classifier."""

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            message = (
                "a model must have timm's forward_features and forward_head, got "
                f"{type(model).__name__}; choose another, or measure a block with --layer"
            )
            raise SpecError(message)
        self.model: Any = model

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        features = self.model.forward_head(self.model.forward_features(images), pre_logits=True)
        pooled: Tensor = features.flatten(1)
        return pooled


class _Block:
    """The mean over places of what a block's module gives."""

    def __init__(self, model: nn.Module, module: nn.Module, layer: str) -> None:
        self.model, self.module, self.layer = model, module, layer
        self.channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        seen: list[Any] = []
        hook = self.module.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
        try:
            self.model(images)
        finally:
            hook.remove()
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise SpecError(self._refusal(f"{len(seen)} outputs, or none that is a tensor"))
        return self._pooled(seen[0])

    def _pooled(self, output: Tensor) -> Tensor:
        match output.ndim:
            case 2:
                return output
            case 3:
                return output.mean(dim=1)
            case 4:
                return output.mean(dim=(1, 2) if self.channels_last else (2, 3))
        raise SpecError(self._refusal(f"shape {tuple(output.shape)}"))

    def _refusal(self, got: str) -> str:
        return (
            f"the block of --layer {self.layer} must give one tensor of images, got {got}; choose "
            f"another block, or {POOLED!r}"
        )


def _block_module(model: nn.Module, layers: Layers, layer: str) -> nn.Module:
    if not (layer.isascii() and layer.isdigit()) or int(layer) >= layers.n_blocks:
        message = (
            f"--layer must be {POOLED!r} or a block from 0 to {layers.n_blocks - 1} of "
            f"{type(model).__name__}, got {layer!r}; choose one of these"
        )
        raise SpecError(message)
    name = layers.blocks[int(layer)].name
    last = name.split("+")[-1]
    module: nn.Module | None = dict(model.named_modules()).get(last)
    if module is None:
        message = (
            f"a block must end in a module whose output can be taken, got {name!r} at --layer "
            f"{layer}; choose another block, or {POOLED!r}"
        )
        raise SpecError(message)
    return module
