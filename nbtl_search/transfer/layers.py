"""The ordered blocks of a network and its classifier: what the paper calls layers."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, cast

from timm.models import group_parameters
from timm.models.inception_v4 import InceptionV4
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from nbtl_search.errors import SpecError
from nbtl_search.transfer import module_order
from nbtl_search.transfer.norm_scale import NormScale

Kind = Literal["kernel", "norm", "other"]
Named = tuple[tuple[str, nn.Parameter], ...]

# timm's group_matcher joins the three stem units; the paper counts each of the 22 as a layer.
INCEPTION_V4_BLOCKS = {"blocks": r"^features\.(\d+)"}

NORM_CLASSES = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, NormScale)
# timm's own normalisations (RmsNorm, EvoNorm, ...) share no base class, only their files.
NORM_FILES = frozenset(
    f"timm.layers.{name}"
    for name in (
        "evo_norm",
        "fast_norm",
        "filter_response_norm",
        "inplace_abn",
        "norm",
        "norm_act",
        "split_batchnorm",
    )
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One layer: its parameters under their full names, and the modules that own them."""

    name: str
    modules: tuple[tuple[str, nn.Module], ...]
    parameters: Named

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """Return what each parameter is: a kernel, of a normalisation, or other."""
        return {
            dotted(owner, own): kind_of(module, own)
            for owner, module in self.modules
            for own, _ in module.named_parameters(recurse=False)
        }


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A network's blocks, from the input, and its classifier: each parameter exactly once."""

    blocks: tuple[Block, ...]
    head: Block

    @property
    def n_blocks(self) -> int:
        """Return the number of blocks, the classifier not counted."""
        return len(self.blocks)

    @property
    def block_parameters(self) -> Named:
        """Return the parameters of all blocks, in their order."""
        return tuple(pair for block in self.blocks for pair in block.parameters)

    def pretrained(self, reinit_layers: int) -> tuple[Block, ...]:
        """Return the blocks that keep their pre-trained values."""
        return self.blocks[: max(0, self.n_blocks - (reinit_layers - 1))]


def layers_of(model: nn.Module) -> Layers:
    """Return the ordered layers of a timm model.

    Inception-v4 has the 22 blocks `features.0` to `features.21`; other models have the blocks of
    their own `group_matcher`, or of `module_order` where they have none. The parameters of the
    classifier are the head, also where timm groups them with a block.

    Raises:
        SpecError: the model has no blocks or no classifier to tell apart.
    """
    head = {id(parameter) for parameter in classifier_parameters(model).values()}
    ordinals: dict[str, int] = group_parameters(model, _matcher(model), reverse=True)
    groups: dict[int, list[tuple[str, nn.Parameter]]] = defaultdict(list)
    heads: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        members = heads if id(parameter) in head else groups[ordinals[name]]
        members.append((name, parameter))
    if not groups or not heads:
        message = (
            f"a model must have blocks and a classifier, got {len(groups)} blocks and "
            f"{len(heads)} classifier parameters in {type(model).__name__}; choose another model"
        )
        raise SpecError(message)
    blocks = tuple(_block(model, groups[ordinal]) for ordinal in sorted(groups))
    return Layers(blocks=blocks, head=_block(model, heads))


def classifier_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the classifier's parameters under their full names.

    Raises:
        SpecError: the model does not say which module its classifier is.
    """
    if not hasattr(model, "get_classifier"):
        message = f"a timm model has get_classifier(), got {type(model).__name__}; choose another"
        raise SpecError(message)
    found = cast("Any", model).get_classifier()
    modules: Iterable[nn.Module] = found if isinstance(found, tuple | list) else (found,)
    own = {id(parameter) for module in modules for parameter in module.parameters()}
    return {name: value for name, value in model.named_parameters() if id(value) in own}


def kind_of(module: nn.Module, parameter: str) -> Kind:
    """Tell what a module's own parameter is: by the module's type, never by its name."""
    files = {cls.__module__ for cls in type(module).__mro__}
    if isinstance(module, NORM_CLASSES) or files & NORM_FILES:
        return "norm"
    if isinstance(module, _ConvNd | nn.Linear) and parameter == "weight":
        return "kernel"
    return "other"


def _matcher(model: nn.Module) -> dict[str, Any] | Callable[[str], Any]:
    if isinstance(model, InceptionV4):
        return INCEPTION_V4_BLOCKS
    if not hasattr(model, "group_matcher"):
        return module_order.ordinals(model, classifier_parameters(model)).__getitem__
    matcher: dict[str, Any] | Callable[[str], Any] = cast("Any", model).group_matcher(coarse=False)
    return matcher


def _block(model: nn.Module, members: list[tuple[str, nn.Parameter]]) -> Block:
    own = dict(members)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in own)
    return Block(
        name=_name(own, [name for name, _ in model.named_parameters() if name not in own]),
        modules=tuple((owner, model.get_submodule(owner)) for owner in owners),
        parameters=tuple(members),
    )


def _name(names: Iterable[str], others: Iterable[str]) -> str:
    """Name a group of parameters by the shortest paths that are its own: `conv_stem+bn1`."""
    taken = {path for other in others for path in _paths(other)}
    own = (next(path for path in _paths(name) if path not in taken) for name in names)
    return "+".join(dict.fromkeys(own))


def _paths(name: str) -> list[str]:
    """Return the path to every module around a parameter, outermost first, and its own."""
    return list(accumulate(name.split("."), "{}.{}".format))


def dotted(owner: str, own: str) -> str:
    """Return the full name of a module's own parameter; the model itself has no name."""
    return f"{owner}.{own}" if owner else own
