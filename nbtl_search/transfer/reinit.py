"""Reinitialise the last layers of a pre-trained network.

With `reinit_layers = n` the classifier and the last n - 1 blocks start from fresh values
(Plested, Shen and Gedeon 2021, "Non-binary deep transfer learning for image classification",
arXiv 2107.08585, section 4.3). Unlike the authors' code, a block keeps its type, so n may go up
to every block and the classifier.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nbtl_search.errors import SpecError
from nbtl_search.transfer.layers import Block, Layers, dotted, kind_of

Fresh = Mapping[str, Tensor]
Start = Literal["drawn", "norm", "own rule", "created"]
_NONE: Final[Fresh] = MappingProxyType({})


def fresh_values(layers: Layers) -> Fresh:
    """Return copies of what only a network's own initialiser can give: take them when it is new.

    Of modules that are of no known kind and have no `reset_parameters`, such as a block with the
    scales of its branches, or attention with a table of position biases.
    """
    return {
        dotted(owner, own): parameter.detach().clone()
        for block in (*layers.blocks, layers.head)
        for owner, module in block.modules
        if _start_of(module) == "created"
        for own, parameter in module.named_parameters(recurse=False)
    }


def reset_layers(layers: Layers, n: int) -> tuple[Block, ...]:
    """Return the layers that `reinit_layers = n` resets: head first, then the last blocks.

    Raises:
        SpecError: n is not between 1 and the number of layers.
    """
    if not 1 <= n <= layers.n_blocks + 1:
        message = (
            f"1 <= reinit_layers <= {layers.n_blocks + 1} (blocks and classifier), got {n}; "
            "choose a value in this range"
        )
        raise SpecError(message)
    return (layers.head, *reversed(layers.blocks[layers.n_blocks - (n - 1) :]))


def reinitialise(
    layers: Layers, n: int, *, generator: torch.Generator, fresh: Fresh = _NONE
) -> None:
    """Reset the classifier and the last n - 1 blocks to PyTorch's defaults, in place.

    Kernels of convolutions and linear layers, and their biases, are drawn from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is kaiming_uniform with a = sqrt(5). Normalisations
    get weight 1, bias 0 and fresh running statistics. The head is drawn first and blocks from
    the last one down, so a layer's values do not depend on how many are reset beyond it. Modules
    of other kinds reset themselves, or take the values they had when the network was created.

    Args:
        layers: of the network to change.
        n: number of layers, head first.
        generator: a CPU generator; the global random state is not touched.
        fresh: `fresh_values` of the network.

    Raises:
        SpecError: n is out of range, or a module can be reset in none of these ways. Nothing is
            changed then.
    """
    blocks = reset_layers(layers, n)
    for block in blocks:
        for name, module in block.modules:
            _check_known(name, module, fresh)
    with torch.no_grad():
        for block in blocks:
            for name, module in block.modules:
                _reset(name, module, generator, fresh)


def _start_of(module: nn.Module) -> Start:
    """Tell how a module's own parameters start: drawn, at 1 and 0, by its own rule, or copied."""
    if {name for name, _ in module.named_parameters(recurse=False)} <= {"weight", "bias"}:
        if isinstance(module, _ConvNd | nn.Linear):
            return "drawn"
        if kind_of(module, "weight") == "norm":
            return "norm"
    return "own rule" if hasattr(module, "reset_parameters") else "created"


def _check_known(name: str, module: nn.Module, fresh: Fresh) -> None:
    own = {parameter for parameter, _ in module.named_parameters(recurse=False)}
    if _start_of(module) != "created" or all(dotted(name, one) in fresh for one in own):
        return
    message = (
        f"a layer to reinitialise must have known parts, got {type(module).__name__} at {name!r} "
        f"with parameters {sorted(own)}; use a smaller reinit_layers or another model"
    )
    raise SpecError(message)


def _reset(name: str, module: nn.Module, generator: torch.Generator, fresh: Fresh) -> None:
    own = dict(module.named_parameters(recurse=False))
    match _start_of(module):
        case "drawn":
            bound = 1 / math.sqrt(own["weight"][0].numel())
            for parameter in own.values():
                _draw(parameter, bound, generator)
        case "norm":
            if isinstance(module, _NormBase):
                module.reset_running_stats()
            for own_name, parameter in own.items():
                parameter.fill_(1.0 if own_name == "weight" else 0.0)
        case "own rule":
            _reset_itself(module, generator)
        case "created":
            for own_name, parameter in own.items():
                parameter.copy_(fresh[dotted(name, own_name)])


def _draw(parameter: Tensor, bound: float, generator: torch.Generator) -> None:
    """Fill from U(-bound, bound), on the CPU, so that every device gets the same numbers."""
    drawn = torch.empty(parameter.shape, dtype=torch.float32)
    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))


def _reset_itself(module: nn.Module, generator: torch.Generator) -> None:
    """Call the module's own reset_parameters under a random state drawn from the generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module.reset_parameters()  # type: ignore[operator]
