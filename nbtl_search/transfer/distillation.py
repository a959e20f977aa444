"""Distillation from the source network: what its classifier says of an image stays as it was.

    L = KL( softmax(teacher / T) || softmax(student / T) ), mean over the batch

Both are logits of the source classes: the teacher's from the source network, the student's from
the source classifier, frozen, on the features that learn. Li and Hoiem 2018, "Learning without
forgetting", arXiv 1606.09282; weight 4, T = 3 and no factor T^2 as in the common implementation
for transfer. Hinton, Vinyals and Dean 2015, arXiv 1503.02531, multiply by T^2, which keeps the
gradient's size as T grows.

The images must be the same for both, after mixup too: teacher logits of other images, or of the
unmixed ones, teach something else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from nbtl_search.errors import MethodError, SpecError
from nbtl_search.transfer.layers import classifier_parameters
from nbtl_search.transfer.source import at_least_float32


def distillation(
    source_logits_student: Float[Tensor, "batch classes"],
    source_logits_teacher: Float[Tensor, "batch classes"],
    *,
    temperature: float = 3.0,
    squared: bool = False,
) -> Float[Tensor, ""]:
    """Return the divergence of the student from the teacher, without its weight.

    The teacher is a constant. Half-precision logits are compared in float32.

    Args:
        source_logits_student: of the source classifier on the features that learn.
        source_logits_teacher: of the source network on the same images.
        temperature: T.
        squared: multiply by T^2.

    Raises:
        SpecError: the temperature is not positive.
    """
    if not temperature > 0:
        message = f"temperature > 0, got {temperature}; the usual one is 3"
        raise SpecError(message)
    log_q = functional.log_softmax(at_least_float32(source_logits_student) / temperature, dim=-1)
    teacher = at_least_float32(source_logits_teacher.detach())
    log_p = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
    return divergence * temperature**2 if squared else divergence


@dataclass(frozen=True, kw_only=True)
class SourceHead:
    """The source network's classifier as constants: no module, so nothing trains or exports it."""

    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, " classes"] | None

    def __call__(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the source classes; gradients reach the features only."""
        return functional.linear(features, self.weight, self.bias)

    def to(self, device: torch.device | str) -> "SourceHead":
        """Return it on a device."""
        bias = None if self.bias is None else self.bias.to(device)
        return replace(self, weight=self.weight.to(device), bias=bias)


def source_head(model: nn.Module, state: Mapping[str, Tensor]) -> SourceHead:
    """Return the source classifier of a weights file, whatever classifier the model has now.

    Args:
        model: of the weights' architecture; its own classifier gives the names.
        state: all tensors of the file.

    Raises:
        SpecError: the model's classifier is not one linear layer.
        MethodError: the file holds none, or one of other features.
    """
    classifier = cast("Any", model).get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(classifier, nn.Linear):
        message = (
            f"distillation needs a classifier that is one linear layer, got "
            f"{type(classifier).__name__} in {type(model).__name__}; choose another model"
        )
        raise SpecError(message)
    given = {
        name.rpartition(".")[2]: state[name].detach().float().clone()
        for name in classifier_parameters(model)
        if name in state
    }
    weight, bias = given.get("weight"), given.get("bias")
    fits = weight is not None and weight.shape[1:] == (classifier.in_features,)
    if weight is None or not fits or (bias is not None and bias.shape != weight.shape[:1]):
        got = (
            "none"
            if weight is None
            else " and ".join(f"shape {tuple(v.shape)}" for v in given.values())
        )
        message = (
            f"the weights must hold the source classifier over {classifier.in_features} features, "
            f"got {got}; pass a weights file with its classifier"
        )
        raise MethodError(message)
    return SourceHead(weight=weight, bias=bias)


class PooledFeatures:
    """Records what enters the classifier in every forward pass inside its context.

    `features` is that of the last pass, with its graph: one pass gives a model's own logits, and
    through a `SourceHead` those of the source classes.
    """

    def __init__(self, model: nn.Module) -> None:
        classifier = cast("Any", model).get_classifier()
        if not isinstance(classifier, nn.Module):
            message = (
                f"features enter one classifier, got {type(classifier).__name__} of them in "
                f"{type(model).__name__}; choose another model, or leave out distillation and "
                "spectral shrinkage"
            )
            raise SpecError(message)
        self._classifier: nn.Module = classifier
        self._handle: RemovableHandle | None = None
        self._features: Tensor | None = None

    @property
    def features(self) -> Float[Tensor, "batch features"]:
        """Return the features of the last pass.

        Raises:
            SpecError: there has been none.
        """
        if self._features is None:
            message = "features of a forward pass, got none yet; run the model in this context"
            raise SpecError(message)
        return self._features

    def __enter__(self) -> "PooledFeatures":  # noqa: PYI034 beartype takes Self in classes only
        """Register the hook."""
        self._handle = self._classifier.register_forward_pre_hook(self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the hook and let go of the features."""
        if self._handle is not None:
            self._handle.remove()
        self._features = None

    def _record(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._features = inputs[0]
