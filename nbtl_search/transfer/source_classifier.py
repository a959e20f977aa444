"""Keep the source classifier and put new layers on top of it.

    features -> source classifier -> norm+scale -> [ReLU -> linear -> norm+scale]* -> linear

Shermin et al. 2019, "Enhanced transfer learning with ImageNet trained classification layer",
arXiv 1903.10150. Only their abstract could be had: which layers there are is our reading of it,
and the normalisation is that of Wang, Ramanan and Hebert 2017 (CVPR).

The state dict is plain: the source classifier is `<classifier>.source`, the new layers are
`<classifier>.appended.<index>`. No timm architecture has such layers, so timm alone refuses it.
`rebuilt` reads the sizes of the new layers from the state dict's shapes and needs nothing else;
`kept_architecture` teaches timm to.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.transfer.layers import Block, Layers, layers_of
from nbtl_search.transfer.norm_scale import NormScale
from nbtl_search.transfer.reinit import reinitialise


class KeptClassifier(nn.Module):
    """A pre-trained classifier and the new layers on top of it, in a classifier's place."""

    def __init__(self, source: nn.Linear, *, n_classes: int, hidden: tuple[int, ...] = ()) -> None:
        super().__init__()
        widths = (source.out_features, *hidden)
        layers: list[nn.Module] = [_norm_scale(widths[0])]
        for below, units in zip(widths[:-1], hidden, strict=True):
            layers += [nn.ReLU(), nn.Linear(below, units), _norm_scale(units)]
        self.source = source
        self.appended = nn.Sequential(*layers, nn.Linear(widths[-1], n_classes))

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Return the logits of the target's classes."""
        logits: Tensor = self.appended(self.source(x))
        return logits


class Shape(NamedTuple):
    """The sizes of a kept classifier: source classes, new hidden layers, target classes."""

    n_source: int
    hidden: tuple[int, ...]
    n_classes: int


def append_layers(
    model: nn.Module,
    *,
    n_classes: int,
    hidden: tuple[int, ...] = (),
    generator: torch.Generator,
) -> Layers:
    """Put new layers on top of a timm model's classifier, in place, and return its layers.

    `model(images)` gives the new logits, `get_classifier()` the source classifier and the new
    layers together. New linear layers are drawn as reinitialised ones; every gamma starts at
    sqrt(units), where a normalised activation is about 1.

    Args:
        model: with its pre-trained classifier, and its weights loaded.
        n_classes: of the target.
        hidden: units of the new layers between; none by default.
        generator: a CPU generator; the global random state is not touched.

    Raises:
        SpecError: a size is below 1, or the classifier is not one linear layer. The model is as
            it was then.
    """
    if min((n_classes, *hidden)) < 1:
        message = f"n_classes and hidden units >= 1, got {n_classes} and {hidden}; choose others"
        raise SpecError(message)
    put_classifier(model, n_classes=n_classes, hidden=hidden)
    layers = kept_layers(model)
    reinitialise(layers, 1, generator=generator)
    return layers


def kept_layers(model: nn.Module) -> Layers:
    """Return the layers of a model with a kept classifier: it is the last block, not the head.

    So the source classifier has the high rate, is the last that L2-SP takes in, and is not reset
    by reinit_layers = 1, which resets the head: all new layers.

    Raises:
        SpecError: the model has no kept classifier.
    """
    classifier: Any = cast("Any", model).get_classifier()
    if not isinstance(classifier, KeptClassifier):
        message = (
            f"a kept source classifier, got {type(classifier).__name__} in {type(model).__name__}; "
            "call append_layers first"
        )
        raise SpecError(message)
    layers = layers_of(model)
    source = _part(layers.head, _name_of(model, classifier) + ".source")
    appended = _part(layers.head, _name_of(model, classifier) + ".appended")
    return Layers(blocks=(*layers.blocks, source), head=appended)


def shape_of(state: Mapping[str, Tensor]) -> Shape | None:
    """Return the sizes of a state dict's kept classifier; None where it has none."""
    linear = {
        int(name.split(".")[-2]): value.shape[0]
        for name, value in state.items()
        if ".appended." in name and name.endswith(".weight")
    }
    source = [value.shape[0] for name, value in state.items() if name.endswith(".source.weight")]
    if not linear or len(source) != 1:
        return None
    *hidden, n_classes = (linear[index] for index in sorted(linear))
    return Shape(n_source=source[0], hidden=tuple(hidden), n_classes=n_classes)


def rebuilt(model_name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a timm model with a kept classifier, from the state dict of one.

    Raises:
        WeightsError: the state dict has no kept classifier, or is of another model.
    """
    shape = shape_of(state)
    if shape is None:
        message = (
            f"a state dict with a kept classifier has '.source.' and '.appended.' tensors, got "
            f"{len(state)} tensors without them; load it as a plain timm model"
        )
        raise WeightsError(message)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model(model_name, num_classes=shape.n_source)
    put_classifier(model, n_classes=shape.n_classes, hidden=shape.hidden)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        message = (
            f"the state dict must be of model {model_name!r}, got one that does not fit: "
            f"{' '.join(str(error).split())[:200]}; name the model it was trained as"
        )
        raise WeightsError(message) from error
    return model


def put_classifier(model: nn.Module, *, n_classes: int, hidden: tuple[int, ...]) -> None:
    """Put a `KeptClassifier` in the place of a timm model's classifier, undrawn, in place.

    Raises:
        SpecError: the classifier is not one linear layer. The model is as it was then.
    """
    source: Any = cast("Any", model).get_classifier() if hasattr(model, "get_classifier") else None
    if not isinstance(source, nn.Linear):
        message = (
            f"keeping the source classifier needs one that is one linear layer, got "
            f"{type(source).__name__} in {type(model).__name__}; choose another model"
        )
        raise SpecError(message)
    parent, _, own = _name_of(model, source).rpartition(".")
    with torch.random.fork_rng(devices=[]):
        kept = KeptClassifier(source, n_classes=n_classes, hidden=hidden)
    setattr(model.get_submodule(parent), own, kept.to(source.weight))
    cast("Any", model).num_classes = n_classes


def _norm_scale(n_units: int) -> NormScale:
    return NormScale(n_units, scale=math.sqrt(n_units))


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names: dict[int, str] = {id(module): name for name, module in model.named_modules()}
    return names[id(wanted)]


def _part(head: Block, name: str) -> Block:
    inside = name + "."
    return Block(
        name=name,
        modules=tuple(
            (path, module) for path, module in head.modules if f"{path}.".startswith(inside)
        ),
        parameters=tuple(pair for pair in head.parameters if pair[0].startswith(inside)),
    )
