"""Measure a study's data and weights once, so that every worker can compare."""

from collections.abc import Callable
from pathlib import Path

import torch

from nbtl_search.data.cache import prepare
from nbtl_search.data.prepared import Prepared
from nbtl_search.engine.model import Network, build
from nbtl_search.errors import SpecError
from nbtl_search.spec import Dials, Facts, StudySpec


def probe(
    spec: StudySpec, *, home: Path, progress: Callable[[int, int], None] | None = None
) -> Facts:
    """Prepare the data, build the network once with its weights, and return what they are.

    Raises:
        DataError: the data cannot be had, or are not what they should be.
        SpecError: the model is unknown, or does not take images of this size.
        WeightsError: the weights cannot be had, or do not fit the model.
    """
    prepared = prepare(spec.data, home=home, progress=progress)
    network = build(
        spec.recipe(Dials()), n_classes=len(prepared.classes), home=home, prepared=prepared
    )
    _check_forward(network, prepared, name=spec.model.name)
    return Facts(
        n_blocks=network.layers.n_blocks,
        n_classes=len(prepared.classes),
        n_train=prepared.n_train,
        n_val=prepared.n_val,
        n_test=prepared.n_test,
        data_digest=prepared.digest,
        weights_digest=network.weights_digest,
    )


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
