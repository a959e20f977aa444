"""What a run is in the middle of, as plain values: the content of a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from nbtl_search.engine.randomness import random_state, restore_random_state
from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.spec import Epoch, Recipe

VERSION = 1
RunState = Mapping[str, Any]

# Where data and weights lie does not matter: their digests are compared.
PLACES = {"data": {"dataset", "root"}, "model": {"weights"}}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is, and the sums of its current epoch."""

    epoch: int = 0
    """Epochs finished."""
    update: int = 0
    """Updates done in the current epoch."""
    loss_sum: float = 0.0
    n_images: int = 0
    seconds: float = 0.0

    def after(self, *, loss: float, n_images: int) -> "Progress":
        """Return the progress after one more update."""
        return replace(
            self,
            update=self.update + 1,
            loss_sum=self.loss_sum + loss * n_images,
            n_images=self.n_images + n_images,
        )

    def later(self, *, seconds: float) -> "Progress":
        """Return the progress with more time spent."""
        return replace(self, seconds=self.seconds + seconds)


@runtime_checkable
class Trainable(Protocol):
    """What of a run its state is made of."""

    recipe: Recipe
    data_digest: str
    progress: Progress
    history: tuple[Epoch, ...]
    network: Any
    optimiser: torch.optim.SGD
    gradient: Any


def capture(run: Trainable) -> RunState:
    """Return the state of a run, in types that load with weights_only=True.

    The tensors are the run's own: write or copy them before the run goes on.
    """
    model: nn.Module = run.network.model
    return {
        "version": VERSION,
        "recipe": run.recipe.model_dump_json(),
        "weights_digest": run.network.weights_digest,
        "data_digest": run.data_digest,
        "progress": asdict(run.progress),
        "micro_batch": run.gradient.micro_batch,
        "history": [epoch.model_dump_json() for epoch in run.history],
        "model": dict(model.state_dict()),
        "optimiser": run.optimiser.state_dict(),
        "random": random_state(),
    }


def restore(run: Trainable, saved: RunState) -> None:
    """Bring a run to a captured state; nothing changes if it does not belong to this run.

    Raises:
        SpecError: it is of another recipe or version.
        WeightsError: the pre-trained weights are others now.
        DataError: the data are others now.
    """
    _check(run, saved)
    run.network.model.load_state_dict(saved["model"])
    run.optimiser.load_state_dict(dict(saved["optimiser"]))
    run.gradient.micro_batch = saved["micro_batch"]
    run.progress = Progress(**saved["progress"])
    run.history = tuple(Epoch.parse_json(text) for text in saved["history"])
    restore_random_state(saved["random"])


def _check(run: Trainable, saved: RunState) -> None:
    if saved.get("version") != VERSION:
        message = (
            f"checkpoint version == {VERSION}, got {saved.get('version')}; it is of another "
            "version of this program: use that, or start the run again"
        )
        raise SpecError(message)
    theirs = Recipe.parse_json(saved["recipe"])
    if _settings(run.recipe) != _settings(theirs):
        ours, other = _settings(run.recipe), _settings(theirs)
        named = {**ours, **other}  # a setting that is usual may not be written out
        names = ", ".join(name for name in named if ours.get(name) != other.get(name))
        message = (
            f"a checkpoint continues only its own recipe, got one that differs in {names}; use "
            "that recipe, or another checkpoint directory"
        )
        raise SpecError(message)
    digest = run.network.weights_digest
    if saved["weights_digest"] != digest:
        message = (
            f"pre-trained weights with digest {saved['weights_digest'][:12]} as when the run "
            f"began, got {digest[:12]}; put the first file back, or start the run again"
        )
        raise WeightsError(message)
    if saved["data_digest"] != run.data_digest:
        message = (
            f"data with digest {saved['data_digest'][:12]} as when the run began, got "
            f"{run.data_digest[:12]}; put the first images back, or start the run again"
        )
        raise DataError(message)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return every setting but the places, under dotted names."""
    plain = recipe.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for section, value in plain.items():
        if not isinstance(value, dict):
            flat[section] = value
            continue
        for name, inner in value.items():
            if name not in PLACES.get(section, set()):
                flat[f"{section}.{name}"] = inner
    return flat
