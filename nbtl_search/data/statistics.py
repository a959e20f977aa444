"""Mean and standard deviation of training pixels, exact and kept on disk."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nbtl_search.data.packed import Packed
from nbtl_search.data.publish import publish

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Of all pixels of all training images, per channel, where white is 1."""

    mean: Triple
    std: Triple


def cached(pack: Packed, target: Path) -> Statistics:
    """Return the statistics of these images, made now or before.

    Raises:
        DataError: the disk is full.
    """

    def fill(temporary: Path) -> None:
        text = json.dumps(asdict(measured(pack)))
        (temporary / "statistics.json").write_text(text, encoding="utf-8")

    publish(target, fill, n_bytes=1000)
    plain = json.loads((target / "statistics.json").read_text(encoding="utf-8"))
    return Statistics(mean=tuple(plain["mean"]), std=tuple(plain["std"]))


def measured(pack: Packed) -> Statistics:
    """Count the 256 values of each channel: integers, so no order of images changes the result."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for i in range(len(pack)):
        for channel in range(3):
            counts[channel] += np.bincount(pack[i][..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    weights = counts / counts.sum(axis=1, keepdims=True)
    mean = weights @ values
    std = np.sqrt(weights @ values**2 - mean**2)
    return Statistics(mean=_triple(mean.tolist()), std=_triple(std.tolist()))


def _triple(values: list[float]) -> Triple:
    red, green, blue = values
    return red, green, blue
