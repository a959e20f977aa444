"""Loader of batches: augmented images on the device, each random number drawn from its place.

The order is a function of (seed, epoch), an image of (seed, epoch, its index), a batch of (seed,
epoch, update). So an epoch can start at any update, in any process, with the same bits.
"""

import math
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nbtl_search.data.augment import BatchAugment, ImageAugment, crops, normalise
from nbtl_search.data.images import ImageFormat, Pixels, ten_crop
from nbtl_search.data.prepared import Prepared
from nbtl_search.data.survey import in_threads
from nbtl_search.errors import DataError
from nbtl_search.spec import AugmentSettings

# What a stream of random numbers is for: the same (seed, epoch, index) must not give two uses
# the same numbers.
ORDER, IMAGE, BATCH = 0, 1, 2

# Images whose ten crops are made ahead of the network: 43 MB at 299 px.
_N_AHEAD = 16

Raw = tuple[UInt8[Tensor, "batch 3 h w"], Int[Tensor, " batch"]]


def generator(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Return numpy's generator for one purpose and place."""
    return np.random.default_rng((seed, purpose, *place))


def reseed_global(seed: int, purpose: int, *place: int) -> None:
    """Seed Python's, numpy's and torch's CPU generator; call it inside `global_state_kept`."""
    words = np.random.SeedSequence((seed, purpose, *place)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  (timm draws from this one)
    # Not torch.manual_seed, which would also seed every accelerator.
    torch.default_generator.manual_seed(int(words[2]))


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Restore the global generators of Python, numpy and torch's CPU afterwards."""
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        torch.set_rng_state(kept[2])


@final
@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one update learns from."""

    images: Float[Tensor, "batch 3 h w"]
    targets: Float[Tensor, "batch classes"]
    indices: Int64[Tensor, " batch"]
    """Which images these are: their places in the dataset's order, split after split."""


@final
class TrainBatches:
    """Shuffled, augmented batches of training images; the last incomplete one is dropped."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        augment: AugmentSettings,
        format: ImageFormat,  # noqa: A002  (the word of the contract; nothing here formats text)
        batch_size: int,
        seed: int,
        device: torch.device | str,
        n_workers: int = 0,
        splits: Sequence[str] = ("train",),
    ) -> None:
        self.seed = seed
        self.device = torch.device(device)
        self.images = _AugmentedImages(
            prepared, augment=augment, image_format=format, seed=seed, splits=splits
        )
        self.batch_size = min(batch_size, len(self.images.places))
        self.finish = BatchAugment(augment, format, n_classes=len(prepared.classes))
        self._plan: list[tuple[int, int, NDArray[np.int64]]] = []
        self._workers = _workers(self.images, self._plan, n_workers, self.device)

    @property
    def n_updates(self) -> int:
        """Return the number of batches of an epoch; one short batch if there are few images."""
        return len(self.images.places) // self.batch_size

    def epoch(self, e: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of epoch `e` (from 0), from update `start` on.

        With loader processes, one epoch at a time: the next one ends the one before.
        """
        # The whole epoch's order is drawn also where the epoch begins half-way: a resumed run sees
        # the same batches.
        order = generator(self.seed, ORDER, e).permutation(len(self.images.places))
        plan = [
            (e, update, order[update * self.batch_size : (update + 1) * self.batch_size])
            for update in range(start, self.n_updates)
        ]
        # In place: the loader's sampler is this very list, and its processes live for all epochs.
        self._plan[:] = plan
        raw = map(self.images.__getitem__, plan) if self._workers is None else self._workers
        for (_, update, indexes), (images, labels) in zip(plan, raw, strict=True):
            yield self._finished(e, update, torch.from_numpy(indexes), images, labels)

    def _finished(
        self, e: int, update: int, indices: Tensor, images: Tensor, labels: Tensor
    ) -> Batch:
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        with global_state_kept():
            reseed_global(self.seed, BATCH, e, update)
            mixed, targets = self.finish(images, labels)
        return Batch(images=mixed, targets=targets, indices=indices.to(self.device))


@final
class _AugmentedImages(Dataset[Raw]):
    """The images of a batch, augmented one by one, as uint8; what a loader process works on."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        augment: AugmentSettings,
        image_format: ImageFormat,
        seed: int,
        splits: Sequence[str],
    ) -> None:
        self.prepared = prepared
        self.image_format = image_format
        self.seed = seed
        self.crops = crops(augment)
        self.augmented = ImageAugment(augment, image_format)
        self._evaluation: dict[str, Pixels] = {}
        labels = [prepared.labels(split) for split in splits]
        self.labels = np.concatenate(labels)
        self.places = [
            (s, i) for s, n in zip(splits, map(len, labels), strict=True) for i in range(n)
        ]
        if not self.places:
            message = f"training needs images, got none in {tuple(splits)}; name other splits"
            raise DataError(message)

    def __getitem__(self, planned: tuple[int, int, NDArray[np.int64]]) -> Raw:
        """Return the images and labels of one planned batch (epoch, update, indexes)."""
        e, _, indexes = planned
        images = []
        with global_state_kept():
            for index in indexes.tolist():
                # For each image: it is augmented alike by any number of loader processes.
                reseed_global(self.seed, IMAGE, e, index)
                images.append(self.augmented(self._pixels(index)))
        return torch.stack(images), torch.from_numpy(self.labels[indexes])

    def _pixels(self, index: int) -> Pixels:
        split, i = self.places[index]
        if self.crops:
            return self.prepared.pixels(split, i)
        if split not in self._evaluation:
            self._evaluation[split] = self.prepared.evaluation(split, self.image_format)
        pixels: Pixels = self._evaluation[split][i]
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled as a copy of all its pixels.
        return self.__dict__ | {"_evaluation": {}}


def _workers(
    images: _AugmentedImages,
    plan: list[tuple[int, int, NDArray[np.int64]]],
    n_workers: int,
    device: torch.device,
) -> DataLoader[Raw] | None:
    if n_workers == 0:
        return None
    # A fork of a process with threads and CUDA may hang; a server forked early does not. It
    # imports this module once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return DataLoader(
        images,
        sampler=plan,
        batch_size=None,  # the plan holds whole batches
        num_workers=n_workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        multiprocessing_context=context,
    )


@final
class EvalBatches:
    """The images of a split under timm's evaluation transform, in order, the last one too."""

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        *,
        format: ImageFormat,  # noqa: A002  (as TrainBatches)
        batch_size: int,
        device: torch.device | str,
    ) -> None:
        self.pixels = prepared.evaluation(split, format)
        self.labels = prepared.labels(split)
        self.image_format = format
        self.batch_size = batch_size
        self.device = torch.device(device)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "batch 3 h w"], Int[Tensor, " batch"]]]:
        for start in range(0, len(self.labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            pixels = torch.from_numpy(np.ascontiguousarray(self.pixels[part].transpose(0, 3, 1, 2)))
            images = pixels.to(self.device, non_blocking=True).float()
            yield (
                normalise(images, self.image_format),
                torch.from_numpy(self.labels[part]).to(self.device),
            )


@final
class TenCropBatches:
    """Ten crops of the images of a split, from the originals in their full size, in order.

    They are cut while the network works and kept nowhere: they are read once.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        *,
        format: ImageFormat,  # noqa: A002  (as TrainBatches)
        batch_size: int,
        device: torch.device | str,
    ) -> None:
        self.prepared = prepared
        self.split = split
        self.labels = prepared.labels(split)
        self.image_format = format
        self.batch_size = batch_size
        self.device = torch.device(device)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Float[Tensor, "batch 10 3 h w"], Int[Tensor, " batch"]]]:
        crops = self._crops()
        for start in range(0, len(self.labels), self.batch_size):
            labels = torch.from_numpy(self.labels[start : start + self.batch_size])
            pixels = np.stack([next(crops) for _ in labels]).transpose(0, 1, 4, 2, 3)
            images = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float()
            normalised = normalise(images.flatten(0, 1), self.image_format)
            yield normalised.unflatten(0, (len(labels), 10)), labels.to(self.device)

    def _crops(self) -> Iterator[Pixels]:
        n = len(self.labels)
        for start in range(0, n, _N_AHEAD):
            yield from in_threads(self._ten, range(start, min(start + _N_AHEAD, n)))

    def _ten(self, i: int) -> Pixels:
        return ten_crop(self.prepared.original(self.split, i), self.image_format)
