"""L2 and L2-SP with a number of L2-SP layers, as a gradient added in place.

    R(w) = alpha/2 * sum over SP of ||w - w0||^2  +  beta/2 * sum over L2 of ||w||^2

Form: Li, Grandvalet and Davoine 2018, "Explicit inductive bias for transfer learning with
convolutional networks", arXiv 1802.01483. Number of layers: Plested, Shen and Gedeon 2021,
arXiv 2107.08585, section 4.5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.spec import Dials
from nbtl_search.transfer.layers import Block, Kind, Layers

Scope = Literal["no_norm", "weights", "all"]
Compat = Literal["paper", "authors"]
Anchors = Mapping[str, Float[Tensor, "..."]]

COVERED: dict[Scope, frozenset[Kind]] = {
    "no_norm": frozenset({"kernel", "other"}),
    "weights": frozenset({"kernel"}),
    "all": frozenset({"kernel", "other", "norm"}),
}

# The released code parses its rates and never reads them; these are what it computes with.
AUTHORS_ALPHA_FIRST, AUTHORS_ALPHA, AUTHORS_BETA = 0.04, 0.02, 0.0005


class Pull(NamedTuple):
    """One parameter's pull: to its anchor, or to zero where there is none."""

    name: str
    parameter: nn.Parameter
    rate: float
    anchor: Float[Tensor, "..."] | None


@dataclass(frozen=True, kw_only=True)
class L2SP:
    """The penalty R of a network: which parameter is pulled where, and how strongly."""

    sp: tuple[Pull, ...]
    l2: tuple[Pull, ...]

    @torch.no_grad()
    def value(self) -> Float[Tensor, ""]:
        """Return R(w) in float64."""
        terms = [
            pull.rate / 2 * _offset(pull).double().square().sum() for pull in (*self.sp, *self.l2)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add dR/dw to the gradients in place: alpha (w - w0), or beta w.

        Call it after backward and unscaling and before clipping, where the term would be if it
        stood in the loss; no autograd graph over all weights is built.
        """
        for rate, pulls in _by_rate(self.sp).items():
            parameters: list[Tensor] = [pull.parameter for pull in pulls]
            anchors = [pull.anchor for pull in pulls if pull.anchor is not None]
            offsets = torch._foreach_sub(parameters, anchors)  # noqa: SLF001 no public name
            torch._foreach_add_(_gradients(pulls), offsets, alpha=rate)
        for rate, pulls in _by_rate(self.l2).items():
            parameters = [pull.parameter for pull in pulls]
            torch._foreach_add_(_gradients(pulls), parameters, alpha=rate)

    @torch.no_grad()
    def step_(self, rates: Mapping[nn.Parameter, float]) -> None:
        """Take the penalty's own step, w -= rate dR/dw, in place: decoupled from the gradient.

        Loshchilov and Hutter 2019, arXiv 1711.05101, for L2; the pull to w0 goes the same way. Call
        it before the optimiser's step.

        Args:
            rates: the learning rate of each parameter that is pulled.
        """
        for pull in (*self.sp, *self.l2):
            pull.parameter.sub_(_offset(pull), alpha=rates[pull.parameter] * pull.rate)


def l2sp(
    layers: Layers,
    dials: Dials,
    *,
    anchors: Anchors,
    scope: Scope = "no_norm",
    compat: Compat = "paper",
) -> L2SP:
    """Build the penalty of a network.

    SP holds the covered parameters of blocks with index < n_l2sp that are pre-trained, which is
    to say below the reinitialised ones and with an anchor; L2 holds every other covered one, the
    classifier's weight and bias included. `n_l2sp` beyond the number of blocks means all.

    With compat = "authors" the released code's regulariser is built instead; see `_authors`.
    """
    if compat == "authors":
        return _authors(layers, dials, anchors)
    kinds = COVERED[scope]
    n_sp = min(dials.n_l2sp, len(layers.pretrained(dials.reinit_layers)))
    sp, l2 = _split(layers, n_sp, kinds, anchors, alpha=dials.alpha, beta=dials.beta)
    return L2SP(sp=sp if dials.alpha else (), l2=l2 if dials.beta else ())


def _authors(layers: Layers, dials: Dials, anchors: Anchors) -> L2SP:
    """Build what the released code computes, whatever alpha, beta and scope say.

    * rates: 0.04 on the first SP tensor, 0.02 on the others, 0.0005 towards zero;
    * a block counts as new from index n_blocks - reinit_layers on, one more than is reset;
    * the number of L2-SP blocks is n_low, not n_l2sp.

    Two readings are ours. `n_l2sp = 0` switches the regulariser off, as leaving out its option
    does there. With L2-SP on and `n_low = 0` their code raises TypeError; its published optimum
    for DTD (one rate, 14 L2-SP layers) needs three equal rates, so there n_l2sp counts.
    """
    if dials.n_l2sp == 0:
        return L2SP(sp=(), l2=())
    n_old = max(0, layers.n_blocks - dials.reinit_layers)
    n_sp = min(dials.n_low or dials.n_l2sp, n_old)
    sp, l2 = _split(
        layers, n_sp, COVERED["no_norm"], anchors, alpha=AUTHORS_ALPHA, beta=AUTHORS_BETA
    )
    first = tuple(pull._replace(rate=AUTHORS_ALPHA_FIRST) for pull in sp[:1])
    return L2SP(sp=first + sp[1:], l2=l2)


def _split(
    layers: Layers,
    n_sp: int,
    kinds: frozenset[Kind],
    anchors: Anchors,
    *,
    alpha: float,
    beta: float,
) -> tuple[tuple[Pull, ...], tuple[Pull, ...]]:
    """Return the pulls to anchors in the first `n_sp` blocks, and to zero everywhere else."""
    sp: list[Pull] = []
    l2: list[Pull] = []
    for index, block in enumerate((*layers.blocks, layers.head)):
        for name, parameter in _covered(block, kinds):
            if index < n_sp and name in anchors:
                sp.append(Pull(name, parameter, alpha, anchors[name]))
            else:
                l2.append(Pull(name, parameter, beta, None))
    return tuple(sp), tuple(l2)


def _covered(block: Block, kinds: frozenset[Kind]) -> list[tuple[str, nn.Parameter]]:
    return [pair for pair in block.parameters if block.kinds[pair[0]] in kinds]


def _offset(pull: Pull) -> Tensor:
    return pull.parameter if pull.anchor is None else pull.parameter - pull.anchor


def _by_rate(pulls: tuple[Pull, ...]) -> dict[float, list[Pull]]:
    groups: dict[float, list[Pull]] = {}
    for pull in pulls:
        groups.setdefault(pull.rate, []).append(pull)
    return groups


def _gradients(pulls: list[Pull]) -> list[Tensor]:
    """Return the gradients, made of zeros where the loss did not reach a parameter."""
    for pull in pulls:
        if pull.parameter.grad is None:
            pull.parameter.grad = torch.zeros_like(pull.parameter)
    return [pull.parameter.grad for pull in pulls if pull.parameter.grad is not None]
