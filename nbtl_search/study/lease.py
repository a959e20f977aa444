"""The values of the lifecycle of a trial: what was asked, who holds it, and how it ended."""

from dataclasses import dataclass
from typing import Literal

Desired = Literal["run", "pause", "stop"]
Terminal = Literal["complete", "pruned", "failed"]
FinalStage = Literal["confirm", "test"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A trial that the sampler has proposed."""

    trial_id: int
    number: int
    name: str
    protected: bool
    recipe_json: str


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to train one trial, and all that is needed for it."""

    trial_id: int
    number: int
    name: str
    protected: bool
    recipe_json: str
    token: int
    attempt: int
    worker: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: Terminal
    value: float | None = None
    best_epoch: int | None = None
    cause: str | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class FinalResult:
    """What a final run gave on the test images, and where it left its weights."""

    n_images: int
    top1: float
    top5: float
    ten_crop_top1: float
    ten_crop_top5: float
    predictions: bytes
    """The content of predictions.npz."""
    host: str
    folder: str
    digest: str
    """sha256 of model.safetensors."""
