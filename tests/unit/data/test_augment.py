"""Augmentation against timm's own pipeline and against formulas written down anew."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.mixup import FastCollateMixup

from nbtl_search.data import loader
from nbtl_search.data.augment import BatchAugment, ImageAugment
from nbtl_search.data.images import ImageFormat
from nbtl_search.errors import SpecError
from nbtl_search.spec import AugmentSettings

QUIET = AugmentSettings(mixup=0.0, erasing=0.0, label_smoothing=0.0)


def batch(n: int, image_format: ImageFormat) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(n)
    shape = (n, 3, image_format.image_px, image_format.image_px)
    images = torch.from_numpy(rng.integers(0, 256, size=shape, dtype=np.uint8))
    return images, torch.from_numpy(rng.integers(0, 5, size=n))


def seeded(augment, *arguments, seed: int = 0):
    with loader.global_state_kept():
        loader.reseed_global(seed, loader.BATCH)
        return augment(*arguments)


@pytest.mark.parametrize("seed", range(40))
def test_image_augmentation_is_timms(image_format, seed):
    """Same seed, same pixels as the transform that timm builds for the authors' command line."""
    transform = create_transform(
        input_size=16,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="random",
        mean=image_format.mean,
        use_prefetcher=True,
    )
    size = (np.random.default_rng(seed).integers(8, 60, size=2).tolist(), 3)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(*size[0], 3), dtype=np.uint8)
    theirs = seeded(transform, Image.fromarray(pixels), seed=seed)
    ours = seeded(ImageAugment(AugmentSettings(), image_format), pixels, seed=seed)
    assert torch.equal(ours, theirs)


def test_unknown_policy_is_one_line(image_format):
    with pytest.raises(SpecError, match=r"augment.randaugment .*'auto-m9'; write one"):
        ImageAugment(AugmentSettings(randaugment="auto-m9"), image_format)


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_timms(image_format, seed, monkeypatch):
    """FastCollateMixup, which the authors used, mixes grey levels and rounds them."""
    images, labels = batch(6, image_format)
    augment = BatchAugment(QUIET.replace(mixup=0.2), image_format, n_classes=5)
    ours, targets = seeded(augment, images, labels, seed=seed)
    mix = FastCollateMixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=5)
    # Its own draw differs only in a first number that decides whether to mix at all.
    draw = lambda: (float(np.random.beta(0.2, 0.2)), False)  # noqa: E731, NPY002
    monkeypatch.setattr(mix, "_params_per_batch", draw)
    pairs = [(image.numpy(), int(label)) for image, label in zip(images, labels, strict=True)]
    theirs, their_targets = seeded(mix, pairs, seed=seed)
    mean, std = (torch.tensor(v).view(3, 1, 1) * 255 for v in (image_format.mean, image_format.std))
    torch.testing.assert_close(ours, (theirs - mean) / std, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(targets, their_targets)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_against_the_formula(image_format, n, smoothing):
    images, labels = batch(n, image_format)
    settings = QUIET.replace(mixup=0.2, label_smoothing=smoothing)
    augment = BatchAugment(settings, image_format, n_classes=5)
    _, targets = seeded(augment, images, labels)
    lam = seeded(lambda: float(np.random.beta(0.2, 0.2)))  # noqa: NPY002
    for i in range(n):
        for c in range(5):
            own, other = int(labels[i]) == c, int(labels[n - 1 - i]) == c
            mixed = lam * own + (1 - lam) * other
            assert targets[i, c].item() == pytest.approx(
                (1 - smoothing) * mixed + smoothing / 5, abs=1e-6
            )


def test_without_mixup_targets_are_smoothed_labels(image_format):
    images, labels = batch(3, image_format)
    augment = BatchAugment(QUIET.replace(label_smoothing=0.1), image_format, n_classes=5)
    _, targets = augment(images, labels)
    assert targets.max(dim=1).values.tolist() == pytest.approx([0.92] * 3)
    assert targets.argmax(dim=1).tolist() == labels.tolist()
    assert targets.sum(dim=1).tolist() == pytest.approx([1.0] * 3)


def test_erasing_comes_after_normalisation_and_in_one_rectangle(image_format):
    images, labels = batch(40, image_format)
    plain, _ = BatchAugment(QUIET, image_format, n_classes=5)(images, labels)
    augment = BatchAugment(QUIET.replace(erasing=0.5), image_format, n_classes=5)
    erased, _ = seeded(augment, images, labels)
    noise = []
    for before, after in zip(plain, erased, strict=True):
        changed = (before != after).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero(), changed.any(dim=0).nonzero()
        if not len(rows):
            continue
        part = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == part[0].numel()
        assert part[0].numel() <= 16 * 16 / 2
        noise.append(part.flatten())
    assert 10 <= len(noise) <= 30
    drawn = torch.cat(noise)
    assert abs(drawn.mean()) < 0.1
    assert abs(drawn.std() - 1) < 0.1
