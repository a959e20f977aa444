"""DTNH: a regulariser whose gradient may not work against that of the empirical loss.

With g the gradient of the empirical loss and r that of the regulariser, its rate included,

    r_perp = r - <g, r> / ||g||^2 g
    g_new = g + r         if <g, r> >= 0, else g + r_perp        mode "conflict"
    g_new = g + r_perp                                           mode "always"

in every group of tensors, so that <g_new, g> >= ||g||^2: to first order the empirical loss falls
at least as fast as without the regulariser. It is one-sided: g itself is never changed.

Source: Wan, Xiong, Li, Zhu and Huan 2019, "Towards making deep transfer learning never hurt",
arXiv 1911.07489. The text of its algorithm could not be had: "always" is what the code of the
authors' later GrOD intends, "conflict" is our reading of this paper. Both compute per tensor; a
block or the whole network as a group are ours too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.transfer.layers import Layers, Named
from nbtl_search.transfer.penalties import L2SP

Mode = Literal["conflict", "always"]
Granularity = Literal["tensor", "block", "global"]


def project(
    g: Sequence[Tensor], r: Sequence[Tensor], *, sizes: Sequence[int], mode: Mode = "conflict"
) -> list[Tensor]:
    """Return what may be added to g of r: r, or r_perp, by group.

    Args:
        g: gradients of the empirical loss.
        r: gradients of the regulariser, of the same shapes, rate included.
        sizes: of the groups, each of so many tensors on end; together all of them.
        mode: whether r loses its part along g always, or only where it opposes g.
    """
    if not g:
        return []
    products = _by_group(_inner(g, r), sizes)
    squares = _by_group(_inner(g, g), sizes)
    if mode == "conflict":
        products = products.clamp(max=0)
    # Where g vanishes so does the product, and r stays as it is.
    share = products / squares.clamp(min=torch.finfo(squares.dtype).tiny)
    by_group = zip(share.to(g[0].dtype).unbind(), sizes, strict=True)
    shares = [of_group for of_group, size in by_group for _ in range(size)]
    return list(torch._foreach_addcmul(list(r), list(g), shares, value=-1))  # noqa: SLF001


@dataclass(frozen=True, kw_only=True)
class Dtnh:
    """L2-SP, and what else pulls at the pre-trained blocks, without its harm."""

    penalty: L2SP
    groups: tuple[Named, ...]
    """The parameters that can be in one group, under their full names; no classifier."""
    mode: Mode

    @torch.no_grad()
    def add_gradient_(self, gathered: Mapping[str, Tensor] | None = None) -> None:
        """Add the projected gradient of the regularisers to the gradients in place.

        Call it once per batch, after the last backward and unscaling and before clipping. A group
        holds only what is regularised; all else, the classifier and reinitialised blocks among
        it, keeps its gradient. The pull of L2 to zero is added outside the projection.

        Args:
            gathered: gradients of other regularisers over the batch, by parameter: a distance of
                feature maps, distillation; see `Gathered`.
        """
        pulls = self._pulls()
        for name, gradient in (gathered or {}).items():
            pulls[name] = pulls[name] + gradient if name in pulls else gradient
        groups = [[pair for pair in group if pair[0] in pulls] for group in self.groups]
        members = [pair for group in groups for pair in group]
        g = [_gradient(parameter) for _, parameter in members]
        r = [pulls[name] for name, _ in members]
        if g:
            sizes = [len(group) for group in groups if group]
            torch._foreach_add_(g, project(g, r, sizes=sizes, mode=self.mode))
        L2SP(sp=(), l2=self.penalty.l2).add_gradient_()

    def _pulls(self) -> dict[str, Tensor]:
        """Return the gradient of L2-SP in closed form: alpha (w - w0), by parameter."""
        sp = [pull for pull in self.penalty.sp if pull.anchor is not None and pull.rate]
        if not sp:
            return {}
        parameters: list[Tensor] = [pull.parameter for pull in sp]
        anchors = [pull.anchor for pull in sp if pull.anchor is not None]
        offsets = torch._foreach_sub(parameters, anchors)  # noqa: SLF001 no public name
        torch._foreach_mul_(offsets, [pull.rate for pull in sp])
        return dict(zip((pull.name for pull in sp), offsets, strict=True))


def dtnh(
    layers: Layers,
    penalty: L2SP,
    *,
    mode: Mode = "conflict",
    granularity: Granularity = "tensor",
) -> Dtnh:
    """Build DTNH over a penalty.

    Args:
        layers: of the network that the penalty is of.
        penalty: its pulls to anchors are projected, its pulls to zero are not.
        mode: see `project`.
        granularity: what a group is: a parameter, a block, or all blocks together.
    """
    return Dtnh(penalty=penalty, groups=tuple(_groups(layers, granularity)), mode=mode)


class Gathered:
    """The gradient of a regulariser that needs a backward of its own, over all micro-batches."""

    def __init__(self, parameters: Named) -> None:
        """Gather for these parameters, under their full names."""
        self._parameters = {name: p for name, p in parameters if p.requires_grad}
        self.gradients: dict[str, Tensor] = {}

    def clear(self) -> None:
        """Forget all gradients: a batch begins, or begins again."""
        self.gradients = {}

    def backward(self, loss: Float[Tensor, ""], *, retain_graph: bool = True) -> None:
        """Add the gradient of one micro-batch's regulariser, weighted by its share of the batch.

        Parameters that the loss does not reach get none; where all that is below it is frozen, so
        does every one. The parameters' own `grad` stays.

        Args:
            loss: the regulariser of the micro-batch.
            retain_graph: whether the task's loss, of the same forward pass, comes after it.
        """
        if not loss.requires_grad or not self._parameters:
            return
        found = torch.autograd.grad(
            loss, list(self._parameters.values()), retain_graph=retain_graph, allow_unused=True
        )
        for name, gradient in zip(self._parameters, found, strict=True):
            if gradient is not None:
                # Not in place: autograd may hand out one tensor for two parameters.
                before = self.gradients.get(name)
                self.gradients[name] = gradient if before is None else before + gradient


def _groups(layers: Layers, granularity: Granularity) -> Iterator[Named]:
    blocks = [block.parameters for block in layers.blocks]
    if granularity == "block":
        yield from blocks
    elif granularity == "tensor":
        yield from ((pair,) for block in blocks for pair in block)
    else:
        yield tuple(pair for block in blocks for pair in block)


def _inner(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """Return the inner product of each pair of tensors, in float32 at least."""
    dtype = torch.promote_types(a[0].dtype, torch.float32)
    products = torch._foreach_mul([t.to(dtype) for t in a], [t.to(dtype) for t in b])  # noqa: SLF001
    return torch.stack([product.sum() for product in products])


def _by_group(values: Float[Tensor, " n"], sizes: Sequence[int]) -> Float[Tensor, " groups"]:
    if len(sizes) == len(values):
        return values
    return torch.stack([part.sum() for part in values.split(list(sizes))])


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient, made of zeros where the loss did not reach the parameter."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
