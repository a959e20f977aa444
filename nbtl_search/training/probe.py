"""Probe of a study's data and weights at `create`: the facts that every worker compares with."""

from pathlib import Path
from typing import Any, Final

import torch

from nbtl_search import space
from nbtl_search.data.prepared import Prepared, prepare
from nbtl_search.errors import SpecError, WeightsError
from nbtl_search.network.model import Network, build
from nbtl_search.network.weights import Weights, read_weights
from nbtl_search.source.first_classifier import has_linear_head
from nbtl_search.source.teacher import SourceSignals, check_precomputable, compared_hooks
from nbtl_search.spec import Dials, Facts, Progress, Recipe, StudySpec
from nbtl_search.training.method_losses import Terms

# What a model or its weights may not be able to do.
DEMANDING: Final = ("source_head", "frozen_layers", "delta", "distill", "bss", "stochnorm_p")


def probe(
    spec: StudySpec,
    *,
    home: Path,
    progress: Progress | None = None,
    checking: Progress | None = None,
) -> Facts:
    """Prepare the data, build the network once with its weights, and return what they are.

    Args:
        spec: the study.
        home: below it images and weights are kept.
        progress: called with (images decoded, images in all).
        checking: called with (methods checked, methods in all).

    Raises:
        DataError: the data cannot be had, or are not what they should be.
        SpecError: the model is unknown, does not take images of this size, or cannot have a
            method that the study searches.
        WeightsError: the weights cannot be had, or do not fit the model.
    """
    prepared = prepare(spec.data, home=home, progress=progress)
    weights = read_weights(spec.model, home=home)
    network = build(
        spec.recipe(Dials()),
        n_classes=len(prepared.classes),
        home=home,
        prepared=prepared,
        weights=weights,
    )
    _check_forward(network, prepared, name=spec.model.name)
    facts = Facts(
        n_blocks=network.layers.n_blocks,
        n_classes=len(prepared.classes),
        n_train=prepared.n_train,
        n_val=prepared.n_val,
        n_test=prepared.n_test,
        data_digest=prepared.digest,
        weights_digest=network.weights_digest,
        linear_head=has_linear_head(network),
    )
    _check_methods(spec.with_facts(facts), facts, prepared, weights, home=home, checking=checking)
    return facts


def _check_forward(network: Network, prepared: Prepared, *, name: str) -> None:
    """Pass one empty image through: a network may need larger ones than the study has."""
    size_px = network.image_format.image_px
    expected = (1, len(prepared.classes))
    try:
        with torch.inference_mode():
            logits = network.model.eval()(torch.zeros(1, 3, size_px, size_px))
    except (RuntimeError, ValueError, AssertionError) as error:
        message = (
            f"data.image_px must suit model {name!r}, got {size_px}: "
            f"{str(error).splitlines()[0][:200]}; use larger images or another model"
        )
        raise SpecError(message) from error
    if tuple(logits.shape) != expected:
        message = (
            f"logits of shape {expected}, got {tuple(logits.shape)} of {name!r}; choose another"
        )
        raise SpecError(message)


def _check_methods(
    spec: StudySpec,
    facts: Facts,
    prepared: Prepared,
    weights: Weights,
    *,
    home: Path,
    checking: Progress | None,
) -> None:
    """Build the network with each method that is searched: weights may lack what one needs."""
    searched = space.build_for(spec.search, facts)
    for n_done, name in enumerate(DEMANDING):
        if checking is not None:
            checking(n_done, len(DEMANDING))
        usual = getattr(Dials(), name)
        option = next((one for one in _options(searched, name) if one != usual), usual)
        if option == usual:
            continue
        # The most new layers leave the fewest feature maps that can be compared.
        n_new = max(_options(searched, "reinit_layers")) if name == "delta" else 1
        dials = Dials.parse({name: option, "reinit_layers": n_new})
        try:
            _check_method(spec.recipe(dials), prepared, weights, home=home)
        except (SpecError, WeightsError) as error:
            message = (
                f"search.rows.{name} must hold what can be trained, got {option!r}: {error}; or "
                f"leave it out of the search: search.rows.{name}.fixed = {usual!r}"
            )
            raise type(error)(message) from error


def _options(searched: space.Space, name: str) -> tuple[Any, ...]:
    """Return the ends of a dial's range, or all its options; its one value where it is held."""
    row = searched.row(name)
    if row is None:
        return (searched.fixed.get(name, getattr(Dials(), name)),)
    if isinstance(row.domain, space.Choice):
        return row.domain.options
    return row.domain.low, row.domain.high


def _check_method(recipe: Recipe, prepared: Prepared, weights: Weights, *, home: Path) -> None:
    if recipe.dials.distill and recipe.methods.distill_teacher == "precomputed":
        check_precomputable(recipe)
    network = build(
        recipe, n_classes=len(prepared.classes), home=home, prepared=prepared, weights=weights
    )
    if network.source is not None:
        compared_hooks(recipe, network.layers, network.source.model)
    Terms(network.model, recipe, SourceSignals())
