"""Augmentation of one training image and of one batch, from timm's own parts (METHODS 1.6).

Both draw from the global generators, as timm's parts do: the loader seeds and restores them.
"""

import random
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional

from nbtl_search.data.images import ImageFormat, Pixels
from nbtl_search.errors import SpecError
from nbtl_search.spec import AugmentSettings

EVALUATION_CROP = (1.0, 1.0)


def crops(augment: AugmentSettings) -> bool:
    """Tell whether training takes random crops; if not, it sees the evaluation crop."""
    return augment.crop_scale != EVALUATION_CROP


@final
class ImageAugment:
    """Random resized crop, flip and RandAugment of one image."""

    def __init__(self, augment: AugmentSettings, image_format: ImageFormat) -> None:
        self.hflip = augment.hflip
        self.crop: Any = None
        if crops(augment):
            self.crop = RandomResizedCropAndInterpolation(
                image_format.image_px,
                scale=augment.crop_scale,
                ratio=augment.crop_ratio,
                interpolation="random",
            )
        self.policy = _policy(augment.randaugment, image_format)

    def __call__(self, pixels: Pixels) -> UInt8[Tensor, "3 h w"]:
        """Return the augmented image; without random crops, of the size it has."""
        image = Image.fromarray(pixels) if self.crop is None else self._cropped(pixels)
        if self.hflip and torch.rand(1).item() < self.hflip:
            image = functional.hflip(image)
        if self.policy is not None:
            image = self.policy(image)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def _cropped(self, pixels: Pixels) -> Image.Image:
        """Do what timm's transform does, but copy only the crop out of the memory map."""
        shape = torch.empty(1).expand(1, *pixels.shape[:2])
        top, left, height, width = self.crop.get_params(shape, self.crop.scale, self.crop.ratio)
        interpolation = random.choice(self.crop.interpolation)
        cut = Image.fromarray(pixels[top : top + height, left : left + width])
        resized: Image.Image = functional.resize(cut, self.crop.size, interpolation)
        return resized


def _policy(text: str, image_format: ImageFormat) -> Any:
    if not text:
        return None
    mean = tuple(min(255, round(255 * value)) for value in image_format.mean)
    settings = {"translate_const": int(image_format.image_px * 0.45), "img_mean": mean}
    try:
        return rand_augment_transform(text, settings)
    except (AssertionError, ValueError) as error:
        message = (
            f"augment.randaugment must be a policy of timm such as 'rand-m9-mstd0.5-inc1', "
            f"got {text!r}; write one, or '' for none"
        )
        raise SpecError(message) from error


@final
class BatchAugment:
    """Mixup with label smoothing, normalisation and random erasing of one batch."""

    def __init__(
        self, augment: AugmentSettings, image_format: ImageFormat, *, n_classes: int
    ) -> None:
        self.alpha = augment.mixup
        self.smoothing = augment.label_smoothing
        self.n_classes = n_classes
        self.image_format = image_format
        # On the CPU's generator, so that a seed means the same on every device.
        self.erase = RandomErasing(augment.erasing, mode="pixel", device="cpu")

    def __call__(
        self, images: UInt8[Tensor, "batch 3 h w"], labels: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch 3 h w"], Float[Tensor, "batch classes"]]:
        """Return normalised images and soft targets.

        x' = round(lam x + (1 - lam) x_reversed), lam ~ Beta(alpha, alpha), one per batch, as
        timm's FastCollateMixup; the targets mix alike, with on-value 1 - s + s/C and off-value
        s/C (Zhang et al. 2018, arXiv 1710.09412; Szegedy et al. 2016, arXiv 1512.00567).
        """
        lam = float(np.random.beta(self.alpha, self.alpha)) if self.alpha else 1.0  # noqa: NPY002
        targets = mixup_target(labels, self.n_classes, lam, self.smoothing)
        mixed = images.float() if lam == 1.0 else _mixed(images, lam)
        normalised = normalise(mixed, self.image_format)
        if self.erase.probability:
            normalised = self.erase(normalised)
        return normalised, targets


def _mixed(images: UInt8[Tensor, "batch 3 h w"], lam: float) -> Float[Tensor, "batch 3 h w"]:
    """Mix each image with its mirror place in the batch, rounded to grey levels.

    On a CPU one image at a time: temporaries as large as a batch are fresh memory every time, and
    at 299 px cost three times what all the rest of this module does.
    """
    mixed = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    step = 1 if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        other = images.flip(0) if step > 1 else images[len(images) - 1 - start][None]
        torch.mul(images[part], lam, out=mixed[part])
        mixed[part].add_(other * (1 - lam)).round_()
    return mixed


def normalise(
    images: Float[Tensor, "batch 3 h w"], image_format: ImageFormat
) -> Float[Tensor, "batch 3 h w"]:
    """Subtract the mean and divide by the deviation, in place, in grey levels as timm's loader."""
    mean = torch.tensor(image_format.mean, device=images.device).mul_(255).view(1, 3, 1, 1)
    std = torch.tensor(image_format.std, device=images.device).mul_(255).view(1, 3, 1, 1)
    return images.sub_(mean).div_(std)
