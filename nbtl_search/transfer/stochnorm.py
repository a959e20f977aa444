"""Stochastic normalisation: each channel by the batch's statistics or by the running ones.

    s ~ Bernoulli(p) per channel and forward pass, shared over batch and positions
    z0 = (x - running_mean) / sqrt(running_var + eps)
    z1 = (x - batch_mean) / sqrt(batch_var + eps)
    y = weight ((1 - s) z0 + s z1) + bias

and the running statistics move as in batch norm. In evaluation it is batch norm, and so is p = 1;
p = 0 normalises by the running statistics and still updates them.

Source: Kou, You, Long and Wang 2020, "Stochastic Normalization", NeurIPS 2020.

Masks are drawn from torch's default generator on the input's device. A training run seeds that
for each update by the update's position, so a resumed run, and a batch tried again after running
out of memory, draw the same masks, and there is no generator's state to save.
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from nbtl_search.errors import SpecError

Input = Float[Tensor, "batch channels *positions"]
PerChannel = Float[Tensor, " channels"]


def stochastic_normalisation(
    x: Input,
    running_mean: PerChannel,
    running_var: PerChannel,
    weight: PerChannel | None,
    bias: PerChannel | None,
    *,
    p: float,
    momentum: float,
    eps: float,
    training: bool,
    generator: torch.Generator | None = None,
) -> Input:
    """Normalise each channel by the batch's statistics with probability p, else the running ones.

    The running statistics enter as they were before this call, and as constants. In training
    they are then updated in place, the variance with its unbiased estimate.

    Args:
        x: what to normalise.
        running_mean: updated in place.
        running_var: updated in place.
        weight: gamma; None for 1.
        bias: beta; None for 0.
        p: probability of the batch's statistics, 0 to 1.
        momentum: share of the batch in the new running statistics.
        eps: added to every variance.
        training: if not, the running statistics normalise all channels, and stay.
        generator: on the input's device; None for the default one there.

    Raises:
        SpecError: a channel has one value only, which has no variance.
    """
    if not training:
        return functional.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    if x.numel() == x.shape[1]:
        message = (
            "stochastic normalisation needs more than 1 value per channel to train, got "
            f"{tuple(x.shape)}; use larger batches or images"
        )
        raise SpecError(message)
    s = torch.rand(x.shape[1], device=x.device, generator=generator) < p
    with torch.no_grad():
        mean, var = running_mean.clone(), running_var.clone()
        batch_mean, batch_var = torch.batch_norm_update_stats(
            x, running_mean, running_var, momentum
        )
        mean, var = torch.where(s, batch_mean, mean), torch.where(s, batch_var, var)
    weight = torch.ones_like(mean) if weight is None else weight
    bias = torch.zeros_like(mean) if bias is None else bias
    return cast("Tensor", _Normalise.apply(x, weight, bias, mean, var, s, eps))


class _Normalise(torch.autograd.Function):
    """Normalise by statistics that are the batch's own where s, and constants elsewhere.

    With x_hat = (x - mean) / sqrt(var + eps), the gradient of the input is

        weight / sqrt(var + eps) (g - s (avg(g) + x_hat avg(g x_hat)))

    with averages over batch and positions. Two batch norms and a choice between their outputs say
    the same, and cost more: a step of MobileNetV2 (96 px, 16 images, one CPU thread, median of
    12) took 1.6 times that of batch norm with them, and 1.25 times so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Input,
        weight: PerChannel,
        bias: PerChannel,
        mean: PerChannel,
        var: PerChannel,
        s: Bool[Tensor, " channels"],
        eps: float,
    ) -> Input:
        ctx.save_for_backward(x, weight, mean, var, s)
        ctx.eps = eps
        return _affine(x, weight, bias, mean, var, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Input) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, s = ctx.saved_tensors
        inverse = (var + ctx.eps).rsqrt()
        # Sums over batch and positions of g x_hat and of g.
        _, g_weight, g_bias = torch.ops.aten.native_batch_norm_backward(
            *(g, x, weight, None, None, mean, inverse),
            *(True, ctx.eps, (False, True, True)),
        )
        if not ctx.needs_input_grad[0]:
            return None, g_weight, g_bias, None, None, None, None
        n_values = x.numel() // x.shape[1]
        scale = weight * inverse
        through = torch.where(s, -scale / n_values, 0)
        g_x = _affine(x, through * g_weight, through * g_bias, mean, var, ctx.eps)
        g_x.addcmul_(g, scale.view(-1, *[1] * (x.dim() - 2)))
        return g_x, g_weight, g_bias, None, None, None, None


def _affine(
    x: Input, weight: PerChannel, bias: PerChannel, mean: PerChannel, var: PerChannel, eps: float
) -> Input:
    """Return weight (x - mean) / sqrt(var + eps) + bias in one pass over x."""
    return functional.batch_norm(x, mean, var, weight, bias, eps=eps)


class _Stochastic(_BatchNorm):
    """A batch norm that, while it trains, is a stochastic normalisation."""

    p: float

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        return self.normalise(input) if self.training else super().forward(input)

    def normalise(self, x: Tensor) -> Tensor:
        """Return the input normalised and not yet activated; update the running statistics."""
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        # Their absence is refused on conversion.
        n_batches = cast("Tensor", self.num_batches_tracked).add_(1)
        return stochastic_normalisation(
            x,
            cast("Tensor", self.running_mean),
            cast("Tensor", self.running_var),
            self.weight,
            self.bias,
            p=self.p,
            momentum=1 / int(n_batches) if self.momentum is None else self.momentum,
            eps=self.eps,
            training=True,
        )

    def extra_repr(self) -> str:
        """Return batch norm's settings, and p."""
        settings: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{settings}, p={self.p}"


class StochasticNorm1d(_Stochastic, nn.BatchNorm1d):
    """Stochastic normalisation in the place of `nn.BatchNorm1d`."""


class StochasticNorm2d(_Stochastic, nn.BatchNorm2d):
    """Stochastic normalisation in the place of `nn.BatchNorm2d`."""


class StochasticNormAct2d(_Stochastic, BatchNormAct2d):
    """Stochastic normalisation in the place of timm's `BatchNormAct2d`: drop, activation kept."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 torch's name
        """Normalise, drop and activate."""
        if not self.training:
            return cast("Tensor", BatchNormAct2d.forward(self, input))
        return cast("Tensor", self.act(self.drop(self.normalise(input))))


STOCHASTIC: dict[type[nn.Module], type[_Stochastic]] = {
    nn.BatchNorm1d: StochasticNorm1d,
    nn.BatchNorm2d: StochasticNorm2d,
    BatchNormAct2d: StochasticNormAct2d,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {new: old for old, new in STOCHASTIC.items()}


def convert(model: nn.Module, *, p: float) -> None:
    """Make every batch norm of a network stochastic, in place.

    Only the class of a module changes: its parameters, buffers, activation and hooks are the same
    objects as before, and the keys of the network's state dict do not change. A network that is
    stochastic already takes the new p.

    Args:
        model: the network, with its pre-trained weights and running statistics.
        p: probability of the batch's statistics, 0 to 1.

    Raises:
        SpecError: p is no probability, or the network has no batch norm or one of another kind.
            Nothing is changed then.
    """
    if not 0 <= p <= 1:
        message = f"0 <= p <= 1 for stochastic normalisation, got {p}; choose a probability"
        raise SpecError(message)
    found = {n: module for n, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not found:
        message = (
            "stochastic normalisation needs a network with batch norm, got none in "
            f"{type(model).__name__}; choose another model, or leave the method out"
        )
        raise SpecError(message)
    for name, module in found.items():
        _check_convertible(name, module)
    for module in found.values():
        if not isinstance(module, _Stochastic):
            module.__class__ = STOCHASTIC[type(module)]
        cast("_Stochastic", module).p = p


def restore(model: nn.Module) -> None:
    """Make every stochastic normalisation the batch norm that it was, in place.

    Parameters, buffers and activations stay as they are, so exported weights are batch norm's.
    """
    for module in model.modules():
        if isinstance(module, _Stochastic):
            del module.p
            module.__class__ = PLAIN[type(module)]  # type: ignore[assignment]


def _check_convertible(name: str, module: _BatchNorm) -> None:
    known = type(module) in STOCHASTIC or isinstance(module, _Stochastic)
    if known and module.track_running_stats and module.running_mean is not None:
        return
    kinds = ", ".join(kind.__name__ for kind in STOCHASTIC)
    message = (
        f"stochastic normalisation knows {kinds} with running statistics, got "
        f"{type(module).__name__} at {name!r}; choose another model, or leave the method out"
    )
    raise SpecError(message)
