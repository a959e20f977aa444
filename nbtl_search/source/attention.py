"""DELTA's attention over the channels of the source network: measured once for a dataset, and kept.

Under `<home>/attention/<key>/` lie the head that importance is measured with and, channel after
channel, how much the loss rises where it is silent; the key holds all that they depend on. What was
killed goes on behind the last part that is whole. Measured is as Li et al. 2019, arXiv 1901.09229,
section 3.3, do: the source network frozen, a head trained on its pooled features.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL
import timm
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn import functional

from nbtl_search.data.loader import EvalBatches
from nbtl_search.data.prepared import Prepared
from nbtl_search.errors import DivergedError, OutOfMemoryError, SpecError
from nbtl_search.files import arrays
from nbtl_search.files.atomic import remove_abandoned, write_durably
from nbtl_search.files.shared_folder import alone, writing_below
from nbtl_search.network.device import Placement, derive_seed, ran_out_of_memory, seeded
from nbtl_search.network.model import SourceNetwork
from nbtl_search.network.weights import RANDOM
from nbtl_search.source.features import device_name, exact_float32, extract
from nbtl_search.spec import Progress
from nbtl_search.transfer.delta import attention, channel_importance
from nbtl_search.transfer.feature_hooks import FeatureHook

logger = logging.getLogger(__name__)

Attention = dict[str, Float32[Tensor, " _"]]

BATCH: Final = 32
# Images that pass at once, before they are copied: micro-batches of one size give their batch's
# mean.
MICRO_BATCH: Final = 8
# How the head is trained that importance is measured with: Li et al. 2019, released code.
SETTINGS: Final[dict[str, Any]] = {
    "epochs": 10,
    "batch_size": 32,
    "lr": 0.01,
    "momentum": 0.9,
    "decay_epochs": 6,
    "decay_rate": 0.1,
}


def channel_attention(
    source: SourceNetwork,
    hooks: Sequence[FeatureHook],
    *,
    n_batches: int,
    prepared: Prepared,
    home: Path,
    progress: Progress | None = None,
) -> Attention:
    """Return the attention of each hook's channels, by module: positive, with sum 1.

        importance(ch) = mean over batches of [CE with the channel zero - CE]
        a = softmax(z / 5), z = (importance - mean) / std

    It is measured on `n_batches` batches of 32 training images under the evaluation
    transform, in float32, and kept for next time; of several processes one measures and the others
    wait. Where there are fewer images there are fewer batches, and at least one.

    Args:
        source: the network of the pre-trained weights.
        hooks: of its model.
        n_batches: at most; `methods.delta_batches`.
        prepared: the images.
        home: below it the measurements are kept.
        progress: called with (channels done, channels in all), also while another one measures;
            may raise, and then the next call goes on from there.

    Raises:
        SpecError: the weights are random, or a hook's output is no feature map.
        DataError: `home` cannot be written.
        DivergedError: the head that it is measured with, or an importance, is not finite.
        OutOfMemoryError: the copies with silent channels do not fit.
    """
    if source.weights_digest == RANDOM:
        message = (
            "dials.delta = 'attention' needs pre-trained weights: model.weights != 'random', got "
            "'random'; name 'timm', 'shipped', a file or a folder, or set delta to 'off'"
        )
        raise SpecError(message)
    measurement = Measurement(
        source=source, hooks=tuple(hooks), n_batches=n_batches, prepared=prepared, home=home
    )
    importance = _kept(measurement, progress or (lambda _done, _all: None))
    return {
        module: attention(value).to(source.placement.device) for module, value in importance.items()
    }


def n_together(hook: FeatureHook) -> int:
    """Return how many of a hook's channels are silenced in one pass, and kept in one part.

    Maps with more channels are smaller, and more of them fit: 8, 16, 42 and 64 for the four hooks
    of Inception-v4. All its channels take 0.6 of the time there that 8 throughout would.
    """
    return min(max(8, hook.n_channels // 24), 64)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that the importance of channels follows from, and where it is kept."""

    source: SourceNetwork
    hooks: tuple[FeatureHook, ...]
    n_batches: int
    prepared: Prepared
    home: Path

    @property
    def placement(self) -> Placement:
        """Return where it is measured: as the run's, but in float32, whatever the run trains in."""
        return replace(self.source.placement, bf16=False)

    @property
    def n_channels(self) -> int:
        """Return how many channels all hooks have."""
        return sum(hook.n_channels for hook in self.hooks)

    @property
    def ranges(self) -> list[tuple[FeatureHook, range]]:
        """Return the channels that are measured, and kept, together."""
        return [
            (hook, range(first, min(first + n_together(hook), hook.n_channels)))
            for hook in self.hooks
            for first in range(0, hook.n_channels, n_together(hook))
        ]

    def plain(self) -> dict[str, Any]:
        """Return what the key is made of."""
        return {
            "data_digest": self.prepared.digest,
            "weights_digest": self.source.weights_digest,
            "model": self.source.name,
            "image_format": asdict(self.source.image_format),
            "taps": [[hook.module, hook.n_channels, n_together(hook)] for hook in self.hooks],
            "n_batches": self.n_batches,
            "sizes": [BATCH, MICRO_BATCH],
            "head": SETTINGS,
            "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
        }

    @property
    def directory(self) -> Path:
        """Return the folder of the parts."""
        text = json.dumps(self.plain(), sort_keys=True)
        return self.home / "attention" / hashlib.sha256(text.encode()).hexdigest()[:32]

    def part(self, hook: FeatureHook, channels: range) -> Path:
        """Return the file of some channels that are kept together."""
        return self.directory / f"{self.hooks.index(hook)}-{channels.start:05d}.part"

    def read(self) -> dict[tuple[str, int], float]:
        """Return the importance of every channel whose part is there and whole."""
        found: dict[tuple[str, int], float] = {}
        for hook, channels in self.ranges:
            rows = arrays.read(self.part(hook, channels), n=len(channels))
            if rows is not None:
                found |= {(hook.module, c): float(rows[c - channels.start, 0]) for c in channels}
        return found

    def images(self) -> list[tuple[Float[Tensor, "_ 3 _ _"], Tensor]]:
        """Return the images that importance is measured on, in micro-batches of one size."""
        n = self.prepared.n_train
        size = min(BATCH, n)
        n_images = size * min(self.n_batches, n // size)
        seed = derive_seed("attention images", self.prepared.digest)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        micro_batch = MICRO_BATCH if size % MICRO_BATCH == 0 else size
        batches = EvalBatches(
            self.prepared,
            "train",
            format=self.source.image_format,
            batch_size=micro_batch,
            device=self.placement.device,
        )
        chosen = order[:n_images].numpy()
        batches.pixels, batches.labels = batches.pixels[chosen], batches.labels[chosen]
        memory_format = self.placement.memory_format
        return [(images.to(memory_format=memory_format), labels) for images, labels in batches]


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
        hook.module: torch.tensor([found[hook.module, c] for c in range(hook.n_channels)])
        for hook in measurement.hooks
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
    for hook, channels in measurement.ranges:
        if (hook.module, channels.start) not in done:
            tick = partial(progress, n_done, n_all)
            rows = _part(measurement, head, hook, channels, images, tick)
            _write(measurement, measurement.part(hook, channels), rows)
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
    hook: FeatureHook,
    channels: range,
    images: Sequence[tuple[Float[Tensor, "_ 3 _ _"], Tensor]],
    tick: Callable[[], None],
) -> Float32[np.ndarray, "n 1"]:
    """Return the importance of these channels, fewer of them at once where memory runs out.

    Raises:
        OutOfMemoryError: not even one silent channel at a time fits.
    """
    others = {(hook.module, c) for c in range(hook.n_channels) if c not in channels}
    n_at_once = len(channels)
    while True:
        try:
            with measurement.placement.numerics(), exact_float32():
                found = channel_importance(
                    measurement.source.model,
                    head,
                    (hook,),
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
                    f"{2 * MICRO_BATCH} images without gradients must fit in the memory of "
                    f"{measurement.placement.device}, got {' '.join(str(error).split())[:120]}; "
                    "use smaller images, a smaller model or another device"
                )
                raise OutOfMemoryError(message) from error
            n_at_once //= 2


def _head(measurement: Measurement, tick: Callable[[], None]) -> nn.Module:
    """Return the head that importance is measured with: the one that is kept, or trained now."""
    prepared, placement = measurement.prepared, measurement.placement
    path, n_classes = measurement.directory / "head.part", len(prepared.classes)
    rows = arrays.read(path, n=n_classes)
    if rows is None:
        features = extract(
            prepared,
            measurement.source,
            home=measurement.home,
            splits=("train",),
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
        arrays.write(path, rows)


def trained_head(
    features: Float32[np.ndarray, "n d"],
    labels: Int64[np.ndarray, " n"],
    *,
    n_classes: int,
    seed: int,
) -> Float32[np.ndarray, "c d_1"]:
    """Return the weight of a linear classifier of some features, its bias as last column.

    The backbone is frozen in evaluation mode, so that its features are those of every epoch. The
    rate of epoch e, from 0, is 0.01 * 0.1^(e // 6); the loss is the cross-entropy.

    Raises:
        DivergedError: a weight is not finite.
    """
    x, y = torch.from_numpy(features), torch.from_numpy(labels)
    with seeded(derive_seed("initialise", seed)):
        head = nn.Linear(x.shape[1], n_classes)
    optimiser = torch.optim.SGD(head.parameters(), lr=SETTINGS["lr"], momentum=SETTINGS["momentum"])
    schedule = torch.optim.lr_scheduler.StepLR(
        optimiser, SETTINGS["decay_epochs"], gamma=SETTINGS["decay_rate"]
    )
    generator = torch.Generator().manual_seed(derive_seed("order", seed))
    for _ in range(SETTINGS["epochs"]):
        order = torch.randperm(len(x), generator=generator)
        for rows in order.split(SETTINGS["batch_size"]):
            optimiser.zero_grad()
            functional.cross_entropy(head(x[rows]), y[rows]).backward()
            optimiser.step()
        schedule.step()
    found: Float32[np.ndarray, "c d_1"] = torch.cat(
        [head.weight.detach(), head.bias.detach()[:, None]], dim=1
    ).numpy()
    _check_finite(found, features)
    return found


def linear_head(rows: Float32[np.ndarray, "c d_1"]) -> nn.Module:
    """Return the classifier of pooled features that `trained_head` gave."""
    weight, bias = torch.from_numpy(rows).tensor_split([rows.shape[1] - 1], dim=1)
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight))
    linear.load_state_dict({"weight": weight, "bias": bias[:, 0]})
    return nn.Sequential(nn.Flatten(), linear).eval().requires_grad_(requires_grad=False)


def _check_finite(
    found: Float32[np.ndarray, "c d_1"], features: Float32[np.ndarray, "n d"]
) -> None:
    if not np.isfinite(found).all():
        message = (
            "the head that channel importance is measured with must be finite after 10 epochs at "
            f"rate {SETTINGS['lr']}, got one that is not from features up to "
            f"{np.abs(features).max():.3g}; use other weights, or dials.delta = 'plain'"
        )
        raise DivergedError(message)
