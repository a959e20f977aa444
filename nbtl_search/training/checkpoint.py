"""Checkpoints: a run's state as plain values, and as files that are whole or not used.

A file is `torch.save`'s bytes followed by a footer: eight marker bytes and the sha256 of what
stands before. It is written under a unique name, flushed, and renamed; a file that does not match
its footer is set aside and the one before it is used.
"""

import contextlib
import hashlib
import io
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from nbtl_search.errors import DataError, SpecError, WeightsError
from nbtl_search.files.atomic import remove_abandoned, write_durably
from nbtl_search.network.device import random_state, restore_random_state
from nbtl_search.network.grouped import compute_in_fp32, kinds_in_fp32
from nbtl_search.spec import Epoch, Recipe

logger = logging.getLogger(__name__)

VERSION = 1
MARKER = b"NBTLckp1"
FOOTER_BYTES = len(MARKER) + 32
SUFFIX = ".ckpt"

RunState = Mapping[str, Any]

# Where data and weights lie does not matter: their digests are compared. So a trial can be resumed
# on a node that has them elsewhere.
PLACES = {"data": {"dataset", "root"}, "model": {"weights"}}


@dataclass(frozen=True, kw_only=True)
class EpochProgress:
    """Where a run is, and the sums of its current epoch."""

    epoch: int = 0
    """Epochs finished."""
    update: int = 0
    """Updates done in the current epoch."""
    loss_sum: float = 0.0
    n_images: int = 0
    seconds: float = 0.0

    def after(self, *, loss: float, n_images: int) -> "EpochProgress":
        """Return the progress after one more update."""
        return replace(
            self,
            update=self.update + 1,
            loss_sum=self.loss_sum + loss * n_images,
            n_images=self.n_images + n_images,
        )

    def later(self, *, seconds: float) -> "EpochProgress":
        """Return the progress with more time spent."""
        return replace(self, seconds=self.seconds + seconds)


@runtime_checkable
class Trainable(Protocol):
    """What of a run its state is made of."""

    recipe: Recipe
    data_digest: str
    progress: EpochProgress
    history: tuple[Epoch, ...]
    network: Any
    optimiser: torch.optim.Optimizer
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
        "in_fp32": kinds_in_fp32(model),
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
    # Everything is compared before anything is loaded: a refusal leaves the run as it was.
    _check(run, saved)
    # As it began, also on another machine; runs of before there was a choice had none in fp32.
    compute_in_fp32(run.network.model, saved.get("in_fp32", ()))
    run.network.model.load_state_dict(saved["model"])
    run.optimiser.load_state_dict(dict(saved["optimiser"]))
    run.gradient.micro_batch = saved["micro_batch"]
    run.progress = EpochProgress(**saved["progress"])
    run.history = tuple(Epoch.parse_json(text) for text in saved["history"])
    # Last: building and loading may draw random numbers of their own.
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


@runtime_checkable
class Resumable(Protocol):
    """What has a position and a state: a run."""

    @property
    def position(self) -> tuple[int, int]:
        """Return (epochs finished, updates done in the next one)."""

    def state_dict(self) -> RunState:
        """Return the state to save."""

    def load_state_dict(self, saved: RunState) -> None:
        """Take a saved state."""


def save(directory: Path, run: Resumable, *, keep: int = 2) -> Path:
    """Write a checkpoint, and remove all but the `keep` furthest ones.

    Only files that are less far than the kept ones are removed, so an attempt that was
    overtaken by another, and does not know it yet, cannot remove the other's newer files.

    Raises:
        OSError: the disk is full or not writable. Older checkpoints are untouched then.
    """
    directory.mkdir(parents=True, exist_ok=True)
    epoch, update = run.position
    path = directory / f"{epoch:06d}-{update:08d}{SUFFIX}"
    # In memory first, as the digest behind the content is of all of it: 0.3 GB of Inception-v4.
    content = io.BytesIO()
    torch.save(run.state_dict(), content)
    payload = content.getbuffer()
    write_durably(path, payload, MARKER + hashlib.sha256(payload).digest())
    # Only now, when the new one is on the disk: a crash before this line leaves one too many.
    for old in _furthest_first(directory)[keep:]:
        old.unlink(missing_ok=True)
    remove_abandoned(directory)
    return path


def load_latest(directory: Path, run: Resumable) -> bool:
    """Bring a run to its furthest sound checkpoint; return False where there is none.

    A damaged file is renamed to `*.damaged`, logged, and the one before it is used.

    Raises:
        SpecError: the checkpoint is of another recipe or version.
        WeightsError: the pre-trained weights are others now.
        DataError: the data are others now.
        OSError: a checkpoint cannot be read.
    """
    if not directory.is_dir():
        return False
    remove_abandoned(directory)
    for path in _furthest_first(directory):
        state = _read(path)
        if state is not None:
            run.load_state_dict(state)
            return True
    return False


def _read(path: Path) -> dict[str, Any] | None:
    """Return the state in a file, or None where the file is damaged or gone."""
    try:
        content = memoryview(path.read_bytes())
    except FileNotFoundError:
        return None
    payload, footer = content[:-FOOTER_BYTES], bytes(content[-FOOTER_BYTES:])
    if footer != MARKER + hashlib.sha256(payload).digest():
        # Set aside, not removed, so that somebody can look at it; on a disk that takes no writes it
        # stays, and is passed over again next time.
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".damaged"))
        logger.warning(
            "checkpoint %s is damaged; using the one before it",
            path,
            extra={"action": "load_checkpoint", "path": str(path)},
        )
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state


def _furthest_first(directory: Path) -> list[Path]:
    # The numbers in the names have leading zeros, so names sort as positions do.
    return sorted(directory.glob(f"[0-9]*{SUFFIX}"), reverse=True)
