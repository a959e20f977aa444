"""DELTA's attention over the channels of the source network: measured once for a dataset, and kept.

Under `<home>/attention/<key>/` lie the head that importance is measured with and, channel after
channel, how much the loss rises where it is silent; the key holds all that they depend on. What was
killed goes on behind the last part that is whole. Measured is as Li et al. 2019, arXiv 1901.09229,
section 3.3, do: the source network frozen, a head trained on its pooled features.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from nbtl_search.data.images import ImageFormat
from nbtl_search.data.prepared import Prepared
from nbtl_search.data.publish import alone, writing_below
from nbtl_search.data.survey import Progress
from nbtl_search.engine import parts
from nbtl_search.engine.attention_head import linear_head, trained_head
from nbtl_search.engine.attention_plan import PIECE, Measurement
from nbtl_search.engine.device import Placement
from nbtl_search.engine.durable import remove_abandoned, write_durably
from nbtl_search.engine.features import device_name, exact_float32
from nbtl_search.engine.gradients import ran_out_of_memory
from nbtl_search.engine.randomness import derive_seed
from nbtl_search.engine.training_features import training_features
from nbtl_search.engine.weights import RANDOM
from nbtl_search.errors import OutOfMemoryError, SpecError
from nbtl_search.spec import Recipe
from nbtl_search.transfer.delta import attention
from nbtl_search.transfer.importance import channel_importance
from nbtl_search.transfer.taps import Tap

logger = logging.getLogger(__name__)

Attention = dict[str, Float32[Tensor, " _"]]


def channel_attention(
    recipe: Recipe,
    *,
    model: nn.Module,
    taps: Sequence[Tap],
    prepared: Prepared,
    home: Path,
    placement: Placement,
    format: ImageFormat,  # noqa: A002  (as TrainBatches)
    weights_digest: str,
    progress: Progress | None = None,
) -> Attention:
    """Return the attention of each tap's channels, by module: positive, with sum 1.

        importance(ch) = mean over batches of [CE with the channel zero - CE]
        a = softmax(z / 5), z = (importance - mean) / std

    It is measured on `methods.delta_batches` batches of 32 training images under the evaluation
    transform, in float32, and kept for next time; of several processes one measures and the others
    wait. Where there are fewer images there are fewer batches, and at least one.

    Args:
        recipe: of which data, model and methods.delta_batches count.
        model: the source network, in evaluation mode, with the pre-trained weights of the recipe.
        taps: of the model.
        prepared: the recipe's data.
        home: below it the measurements are kept.
        placement: the device, which the model is on, and the CPU threads.
        format: how the model sees images.
        weights_digest: of the pre-trained weights.
        progress: called with (channels done, channels in all), also while another one measures;
            may raise, and then the next call goes on from there.

    Raises:
        SpecError: the weights are random, or a tap's output is no feature map.
        DataError: the images cannot be had, or `home` cannot be written.
        WeightsError: the weights cannot be had.
        DivergedError: the head that it is measured with, or an importance, is not finite.
        OutOfMemoryError: the copies with silent channels do not fit.
    """
    if weights_digest == RANDOM:
        message = (
            "dials.delta = 'attention' needs pre-trained weights: model.weights != 'random', got "
            "'random'; name 'timm', 'shipped', a file or a folder, or set delta to 'off'"
        )
        raise SpecError(message)
    exact = Placement(device=placement.device, bf16=False, n_threads=placement.n_threads)
    measurement = Measurement(
        recipe=recipe,
        model=model,
        taps=tuple(taps),
        prepared=prepared,
        home=home,
        placement=exact,
        image_format=format,
        weights_digest=weights_digest,
    )
    importance = _kept(measurement, progress or (lambda _done, _all: None))
    return {module: attention(value).to(exact.device) for module, value in importance.items()}


def _kept(measurement: Measurement, progress: Progress) -> dict[str, Float32[Tensor, " _"]]:
    """Read what is there, and measure the rest unless another process does."""
    found, n_all = measurement.read(), measurement.n_channels
    if len(found) < n_all:
        directory = measurement.directory
        with writing_below(directory.parent):
            directory.mkdir(parents=True, exist_ok=True)
        with alone(directory, waiting=lambda: progress(len(measurement.read()), n_all)):
            remove_abandoned(directory)
            _measure(measurement, progress)
            found = measurement.read()
    progress(n_all, n_all)
    return {
        tap.module: torch.tensor([found[tap.module, c] for c in range(tap.n_channels)])
        for tap in measurement.taps
    }


def _measure(measurement: Measurement, progress: Progress) -> None:
    """Measure the channels that no whole part has, and keep each part as it is complete."""
    done = measurement.read()
    n_all = measurement.n_channels
    if len(done) == n_all:
        return
    n_missing = n_all - len(done)
    logger.info(
        "measuring the attention of %d channels",
        n_missing,
        extra={"action": "attention", "path": str(measurement.directory)},
    )
    started = time.perf_counter()
    head = _head(measurement, lambda: progress(len(done), n_all))
    n_done, images = len(done), measurement.images()
    for tap, channels in measurement.ranges:
        if (tap.module, channels.start) not in done:
            tick = partial(progress, n_done, n_all)
            rows = _part(measurement, head, tap, channels, images, tick)
            _write(measurement, measurement.part(tap, channels), rows)
            n_done += len(rows)
            progress(n_done, n_all)
    seconds = time.perf_counter() - started
    logger.info(
        "measured the attention of %d channels in %.1f s",
        n_missing,
        seconds,
        extra={"action": "attention", "n_channels": n_missing, "seconds": round(seconds, 1)},
    )


def _part(
    measurement: Measurement,
    head: nn.Module,
    tap: Tap,
    channels: range,
    images: Sequence[tuple[Float[Tensor, "_ 3 _ _"], Tensor]],
    tick: Callable[[], None],
) -> Float32[np.ndarray, "n 1"]:
    """Return the importance of these channels, fewer of them at once where memory runs out.

    Raises:
        OutOfMemoryError: not even one silent channel at a time fits.
    """
    others = {(tap.module, c) for c in range(tap.n_channels) if c not in channels}
    n_at_once = len(channels)
    while True:
        try:
            with measurement.placement.numerics(), exact_float32():
                found = channel_importance(
                    measurement.model,
                    head,
                    (tap,),
                    images,
                    done=others,
                    n_at_once=n_at_once,
                    tick=tick,
                )
                return np.array([[one.value] for one in found], dtype=np.float32)
        except (RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error):
                raise
            if n_at_once == 1:
                message = (
                    f"{2 * PIECE} images without gradients must fit in the memory of "
                    f"{measurement.placement.device}, got {' '.join(str(error).split())[:120]}; "
                    "use smaller images, a smaller model or another device"
                )
                raise OutOfMemoryError(message) from error
            n_at_once //= 2


def _head(measurement: Measurement, tick: Callable[[], None]) -> nn.Module:
    """Return the head that importance is measured with: the one that is kept, or trained now."""
    prepared, placement = measurement.prepared, measurement.placement
    path, n_classes = measurement.directory / "head.part", len(prepared.classes)
    rows = parts.read(path, n=n_classes)
    if rows is None:
        features = training_features(
            measurement.recipe,
            prepared=prepared,
            home=measurement.home,
            n_threads=placement.n_threads,
            progress=lambda _done, _all: tick(),
        )
        with placement.numerics():
            rows = trained_head(
                features.train,
                features.train_labels,
                n_classes=n_classes,
                seed=derive_seed("attention head", prepared.digest),
            )
        about = measurement.plain() | {"device": device_name(placement.device)}
        with writing_below(measurement.directory):
            content = json.dumps(about, indent=2).encode()
            write_durably(measurement.directory / "about.json", content)
        _write(measurement, path, rows)
    return linear_head(rows).to(placement.device)


def _write(measurement: Measurement, path: Path, rows: Float32[np.ndarray, "n m"]) -> None:
    with writing_below(measurement.directory):
        parts.write(path, rows)
