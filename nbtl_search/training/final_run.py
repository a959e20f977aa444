"""Final run: how it ends, with the test images scored and its weights kept in a folder."""

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

import numpy as np
import safetensors.torch
import timm
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from nbtl_search.data.loader import EvalBatches, TenCropBatches
from nbtl_search.data.prepared import Prepared, prepare
from nbtl_search.errors import DataError, WeightsError
from nbtl_search.files.atomic import replace_folder
from nbtl_search.network.device import Placement
from nbtl_search.spec import Recipe
from nbtl_search.spec.verdict import TestScore
from nbtl_search.training.evaluation import running_logits, running_ten_crop
from nbtl_search.training.gradients import finite
from nbtl_search.training.run import Run

WEIGHTS_FILE: Final = "model.safetensors"
ABOUT_FILE: Final = "about.json"
PREDICTIONS_FILE: Final = "predictions.npz"
N_CROPS: Final = 10

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class ScoringProgress:
    """How far the scoring of the test images is."""

    n_done: int
    """Images whose ten crops are scored; 0 while the single crops are."""
    n_images: int


@dataclass(frozen=True, kw_only=True)
class TestPredictions:
    """What a network makes of each test image, in their order: the arrays of predictions.npz."""

    __test__: ClassVar[bool] = False  # no class of tests, whatever pytest takes it for

    labels: Int64[np.ndarray, " n"]
    single: Int64[np.ndarray, " n"]
    """The class predicted from the single crop."""
    probabilities: Float32[np.ndarray, "n classes"]
    """Mean softmax over ten crops."""


@dataclass(frozen=True, kw_only=True)
class ScoredImages:
    """The test images scored: the score, which is reported, and what it was counted from."""

    score: TestScore
    predictions: TestPredictions


def score_test(
    run: Run, *, home: Path, cache: Path | None = None
) -> Iterator[ScoringProgress | ScoredImages]:
    """Evaluate a run's weights on the test images of its dataset, and on no others.

    Yields its progress at least after every forward of `micro_batch` images, and at last the score.
    The model is left in evaluation mode.

    Args:
        run: which has ended; its current weights are taken.
        home: below it the images lie, decoded; those of the test split are, if need be.
        cache: a folder for decoded images instead of home.

    Raises:
        DataError: there are no test images, they cannot be had, or the data are others now.
        DivergedError: the network gives no finite numbers.
    """
    # Opened here and not with the run: until now nothing could read a test image by mistake.
    prepared = prepare(run.recipe.data, home=home, cache=cache, splits=("test",))
    yield from scored(run, prepared)


def scored(run: Run, prepared: Prepared) -> Iterator[ScoringProgress | ScoredImages]:
    """Evaluate on the test images of a dataset that is open: see `score_test`.

    Raises:
        DataError: there are no test images, they may not be read, or the data are others now.
        DivergedError: the network gives no finite numbers.
    """
    _check(run, prepared)
    n, labels = prepared.n_test, prepared.labels("test")
    single, probabilities, n_done = [], [], 0
    for ranked in _drawn(_ranked(run, prepared), run.placement):
        single.append(ranked)
        yield ScoringProgress(n_done=0, n_images=n)
    for mean in _drawn(_ten_crop(run, prepared), run.placement):
        probabilities.append(mean)
        n_done += len(mean)
        yield ScoringProgress(n_done=n_done, n_images=n)
    yield _scored_images(labels, np.concatenate(single), np.concatenate(probabilities))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The weights that a final run has left in a folder."""

    state: Mapping[str, Tensor]
    """On the CPU, floats as float32, under timm's own keys."""
    recipe: Recipe
    data_digest: str | None
    """Of the images it was trained on; None in folders of before it was written down."""
    micro_batch: int


def read_kept(folder: Path) -> Kept:
    """Read the weights that `keep` has written.

    Raises:
        WeightsError: they are not there, or are not those of the folder's about.json.
    """
    try:
        about = json.loads((folder / ABOUT_FILE).read_text("utf-8"))
        content = (folder / WEIGHTS_FILE).read_bytes()
    except (OSError, ValueError) as error:
        message = (
            f"weights of a final run lie in {str(folder)!r} on {socket.gethostname()!r}, got "
            f"{error}; give all workers one home folder"
        )
        raise WeightsError(message) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != about["weights_digest"]:
        message = (
            f"weights in {str(folder)!r} with digest {about['weights_digest'][:12]}, got "
            f"{digest[:12]}; the file is damaged: finalise the study again"
        )
        raise WeightsError(message)
    return Kept(
        state=safetensors.torch.load(content),
        recipe=Recipe.parse(about["recipe"]),
        data_digest=about.get("data_digest"),
        micro_batch=about.get("micro_batch", 1),
    )


def keep(
    run: Run,
    folder: Path,
    predictions: TestPredictions | None,
    *,
    averaged: Sequence[Recipe] = (),
) -> str:
    """Write a run's weights, what they are and what they predict; return the weights' sha256.

    The folder is there with all its files or not at all; one of an earlier attempt is replaced.
    The same weights give the same model.safetensors, byte for byte.

    Args:
        run: which has ended; its current weights are taken, in float32 under timm's own keys.
        folder: to write model.safetensors, about.json and predictions.npz into.
        predictions: of the test images; None where there are none, and then no predictions.npz.
        averaged: the recipes whose weights the run's are the average of.

    Raises:
        OSError: the disk is full or not writable.
    """
    # The digest goes into the ledger, and an export refuses weights of another one. One key of
    # metadata only: of several the library may write any order, and so other bytes.
    weights = safetensors.torch.save(_exported(run), metadata={"format": "pt"})
    digest = hashlib.sha256(weights).hexdigest()
    about = json.dumps(_about(run, digest, averaged), indent=2, allow_nan=False)
    files = {WEIGHTS_FILE: weights, ABOUT_FILE: f"{about}\n".encode()}
    if predictions is not None:
        content = BytesIO()
        np.savez(
            content,
            labels=predictions.labels,
            single=predictions.single,
            probabilities=predictions.probabilities,
        )
        files[PREDICTIONS_FILE] = content.getvalue()
    # All files at once: the ledger hears of the folder after this, and an attempt that was killed
    # before leaves none, so that the next one scores and writes again.
    replace_folder(folder, files)
    return digest


def _check(run: Run, prepared: Prepared) -> None:
    # Images that were changed since training began could be training images by now.
    if prepared.digest != run.data_digest:
        message = (
            f"test images of the data with digest {run.data_digest[:12]} that the run was trained "
            f"on, got {prepared.digest[:12]}; put the first images back, or start the run again"
        )
        raise DataError(message)
    if prepared.n_test == 0:
        message = (
            f"a final score needs n_test >= 1, got 0 in {run.recipe.data.dataset!r}; add a test/ "
            "folder, or set data.test_fraction"
        )
        raise DataError(message)


def _ranked(run: Run, prepared: Prepared) -> Iterator[NDArray[np.int64]]:
    """Yield the classes of each batch's single crops, most likely first, five at most."""
    batches = EvalBatches(
        prepared,
        "test",
        format=run.network.image_format,
        batch_size=run.gradient.micro_batch,
        device=run.placement.device,
    )
    for logits, _ in running_logits(run.network.model, batches, placement=run.placement):
        # Without this, NaN would rank as some class or other, and count as a mere mistake.
        finite(float(logits.float().sum()), "a logit of the test images")
        yield logits.float().topk(min(5, logits.shape[1]), dim=1).indices.cpu().numpy()


def _ten_crop(run: Run, prepared: Prepared) -> Iterator[NDArray[np.float32]]:
    micro_batch = run.gradient.micro_batch
    batches = TenCropBatches(
        prepared,
        "test",
        format=run.network.image_format,
        batch_size=max(1, micro_batch // N_CROPS),  # what training fitted into the memory
        device=run.placement.device,
    )
    for mean, _ in running_ten_crop(
        run.network.model, batches, placement=run.placement, micro_batch=micro_batch
    ):
        finite(float(mean.sum()), "a probability of the test images")
        yield mean.cpu().numpy()


def _drawn(items: Iterator[Item], placement: Placement) -> Iterator[Item]:
    """Draw the items under the run's numerics; the caller keeps its own.

    A `with` around a whole generator would leave its switches on in the caller between two items.
    """
    while True:
        with placement.numerics():
            item = next(items, None)
        if item is None:
            return
        yield item


def _scored_images(
    labels: NDArray[np.int64], ranked: NDArray[np.int64], probabilities: NDArray[np.float32]
) -> ScoredImages:
    # Stable: of equals the first, as whoever takes the argmax of the file will find.
    ten_crop = np.argsort(-probabilities, axis=1, kind="stable")
    score = TestScore(
        n_images=len(labels),
        top1=_accuracy(ranked[:, :1], labels),
        top5=_accuracy(ranked, labels),
        ten_crop_top1=_accuracy(ten_crop[:, :1], labels),
        ten_crop_top5=_accuracy(ten_crop[:, :5], labels),
    )
    predictions = TestPredictions(
        labels=labels, single=ranked[:, 0].copy(), probabilities=probabilities
    )
    return ScoredImages(score=score, predictions=predictions)


def _accuracy(classes: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    return 100 * int((classes == labels[:, None]).sum()) / len(labels)


def _exported(run: Run) -> dict[str, Tensor]:
    """Return copies on the CPU: floats as float32, and no memory format but the usual one.

    safetensors refuses channels_last, and the bytes must not depend on the device.
    """
    return {
        name: value.detach().to(
            "cpu",
            torch.float32 if value.is_floating_point() else value.dtype,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, value in run.network.model.state_dict().items()
    }


def _about(run: Run, digest: str, averaged: Sequence[Recipe]) -> dict[str, Any]:
    recipe = averaged[0] if averaged else run.recipe
    return {
        "model": run.recipe.model.name,
        "classes": list(run.classes),
        "image_format": asdict(run.network.image_format),
        "recipe": recipe.plain(),
        **({"averaged": [each.plain() for each in averaged]} if averaged else {}),
        "weights_digest": digest,
        "data_digest": run.data_digest,
        "micro_batch": run.gradient.micro_batch,
        "source_weights_digest": run.network.weights_digest,
        "versions": {
            "torch": str(torch.__version__),
            "timm": timm.__version__,
            "nbtl_search": _own_version(),
        },
        "device": str(run.placement.device),
        "precision": run.precision,
    }


def _own_version() -> str:
    try:
        return version("nbtl-search")
    except PackageNotFoundError:
        return "not installed"
