"""Images: a file decoded, the input that a network expects, and timm's evaluation transform."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import functional

Pixels = NDArray[np.uint8]

# What Pillow raises on files that are cut, damaged, no images, or too large to be meant.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, kw_only=True)
class ImageFormat:
    """What a network expects of an image."""

    image_px: int
    """Side of the square input."""
    crop_pct: float
    """Side of the evaluation crop over the shorter side of the resized image."""
    interpolation: str
    """Of the evaluation resize: bilinear, bicubic, …"""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def resized_px(self) -> int:
        """Shorter side of the image before the evaluation crop, as timm rounds it."""
        return int(self.image_px / self.crop_pct)


def decode(file: Path | BinaryIO) -> Image.Image:
    """Decode to RGB exactly as timm's ImageDataset does; EXIF orientation is not applied.

    Raises:
        OSError, SyntaxError, ValueError: what `UNREADABLE` lists, if it is no sound image.
    """
    with Image.open(file) as image:
        return image.convert("RGB")


def evaluation_transform(image_format: ImageFormat) -> Callable[[Image.Image], Pixels]:
    """Return timm's evaluation transform up to, but not including, the normalisation."""
    transform: Callable[[Image.Image], Any] = create_transform(
        input_size=(3, image_format.image_px, image_format.image_px),
        is_training=False,
        interpolation=image_format.interpolation,
        crop_pct=image_format.crop_pct,
        normalize=False,
    )

    def apply(image: Image.Image) -> Pixels:
        pixels: Pixels = transform(image).permute(1, 2, 0).numpy()
        return pixels

    return apply


def ten_crop(image: Pixels, image_format: ImageFormat) -> Pixels:
    """Return corners and centre of the resized image, then the same five of its mirror image."""
    resized = functional.resize(
        Image.fromarray(image),
        image_format.resized_px,
        interpolation=str_to_interp_mode(image_format.interpolation),
    )
    crops = functional.ten_crop(resized, [image_format.image_px, image_format.image_px])
    return np.stack([np.asarray(crop) for crop in crops])
