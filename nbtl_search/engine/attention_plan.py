"""What DELTA's attention is measured on, channel group by channel group, and where that is kept."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import PIL
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from nbtl_search.data.images import ImageFormat
from nbtl_search.data.loader import EvalBatches
from nbtl_search.data.prepared import Prepared
from nbtl_search.engine import parts
from nbtl_search.engine.attention_head import SETTINGS
from nbtl_search.engine.device import Placement
from nbtl_search.engine.randomness import derive_seed
from nbtl_search.spec import Recipe
from nbtl_search.transfer.taps import Tap

BATCH: Final = 32
# Images that pass at once, before they are copied: pieces of one size give their batch's mean.
PIECE: Final = 8


def n_together(tap: Tap) -> int:
    """Return how many of a tap's channels are silenced in one pass, and kept in one part.

    Maps with more channels are smaller, and more of them fit: 8, 16, 42 and 64 for the four taps
    of Inception-v4. All its channels take 0.6 of the time there that 8 throughout would.
    """
    return min(max(8, tap.n_channels // 24), 64)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Everything that the importance of channels follows from, and where it is kept."""

    recipe: Recipe
    model: nn.Module
    taps: tuple[Tap, ...]
    prepared: Prepared
    home: Path
    placement: Placement
    image_format: ImageFormat
    weights_digest: str

    @property
    def n_channels(self) -> int:
        """Return how many channels all taps have."""
        return sum(tap.n_channels for tap in self.taps)

    @property
    def ranges(self) -> list[tuple[Tap, range]]:
        """Return the channels that are measured, and kept, together."""
        return [
            (tap, range(first, min(first + n_together(tap), tap.n_channels)))
            for tap in self.taps
            for first in range(0, tap.n_channels, n_together(tap))
        ]

    def plain(self) -> dict[str, Any]:
        """Return what the key is made of."""
        return {
            "data_digest": self.prepared.digest,
            "weights_digest": self.weights_digest,
            "model": self.recipe.model.name,
            "image_format": asdict(self.image_format),
            "taps": [[tap.module, tap.n_channels, n_together(tap)] for tap in self.taps],
            "n_batches": self.recipe.methods.delta_batches,
            "sizes": [BATCH, PIECE],
            "head": SETTINGS,
            "versions": {"pillow": PIL.__version__, "timm": timm.__version__},
        }

    @property
    def directory(self) -> Path:
        """Return the folder of the parts."""
        text = json.dumps(self.plain(), sort_keys=True)
        return self.home / "attention" / hashlib.sha256(text.encode()).hexdigest()[:32]

    def part(self, tap: Tap, channels: range) -> Path:
        """Return the file of some channels that are kept together."""
        return self.directory / f"{self.taps.index(tap)}-{channels.start:05d}.part"

    def read(self) -> dict[tuple[str, int], float]:
        """Return the importance of every channel whose part is there and whole."""
        found: dict[tuple[str, int], float] = {}
        for tap, channels in self.ranges:
            rows = parts.read(self.part(tap, channels), n=len(channels))
            if rows is not None:
                found |= {(tap.module, c): float(rows[c - channels.start, 0]) for c in channels}
        return found

    def images(self) -> list[tuple[Float[Tensor, "_ 3 _ _"], Tensor]]:
        """Return the images that importance is measured on, in pieces of one size."""
        n = self.prepared.n_train
        size = min(BATCH, n)
        n_images = size * min(self.recipe.methods.delta_batches, n // size)
        seed = derive_seed("attention images", self.prepared.digest)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        piece = PIECE if size % PIECE == 0 else size
        batches = EvalBatches(
            self.prepared,
            "train",
            format=self.image_format,
            batch_size=piece,
            device=self.placement.device,
        )
        chosen = order[:n_images].numpy()
        batches.pixels, batches.labels = batches.pixels[chosen], batches.labels[chosen]
        memory_format = self.placement.memory_format
        return [(images.to(memory_format=memory_format), labels) for images, labels in batches]
