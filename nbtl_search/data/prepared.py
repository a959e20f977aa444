"""A dataset decoded on disk: its pixels as training sees them and as evaluation sees them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nbtl_search.data import packed, statistics
from nbtl_search.data.images import UNREADABLE, ImageFormat, Pixels, decode, evaluation_transform
from nbtl_search.data.publish import publish
from nbtl_search.data.splits import Item, Manifest
from nbtl_search.data.survey import Progress, in_threads
from nbtl_search.errors import DataError


@final
@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset decoded on disk.

    Only the splits asked for can be read, and search never asks for test.
    """

    manifest: Manifest
    """Without the images left out as damaged."""
    skipped: Mapping[str, str]
    """Why images were left out, by key."""
    directory: Path
    """Where everything made from this dataset's content lies."""
    packs: Mapping[str, packed.Packed]
    sizes: Mapping[str, tuple[int, int]]
    """Height and width of the originals, by key."""

    @property
    def digest(self) -> str:
        """Return the sha256 over names, labels, splits and contents."""
        return self.manifest.digest

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes; the index is the label."""
        return self.manifest.classes

    @property
    def n_train(self) -> int:
        """Return the number of training images."""
        return len(self.manifest.train)

    @property
    def n_val(self) -> int:
        """Return the number of validation images."""
        return len(self.manifest.val)

    @property
    def n_test(self) -> int:
        """Return the number of test images, prepared or not."""
        return len(self.manifest.test)

    def labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels of a split.

        Raises:
            DataError: no split has this name.
        """
        return np.array([item.label for item in self.manifest.items(split)], dtype=np.int64)

    def pixels(self, split: str, i: int) -> Pixels:
        """Return image `i` as training sees it: reduced if it is much larger than the input.

        Raises:
            DataError: the split was not asked for.
        """
        return self._pack(split)[i]

    def original(self, split: str, i: int) -> Pixels:
        """Return image `i` as it was decoded, in its full size.

        Raises:
            DataError: the split was not asked for, or the file has gone since.
        """
        pixels, item = self._pack(split)[i], self.manifest.items(split)[i]
        if pixels.shape[:2] == tuple(self.sizes[item.key]):
            return pixels
        return decoded(item, self.manifest)

    def evaluation(
        self, split: str, image_format: ImageFormat, *, progress: Progress | None = None
    ) -> Pixels:
        """Return timm's evaluation transform of a split, before normalisation; made once.

        The result is memory-mapped, n x px x px x 3.

        Raises:
            DataError: the split was not asked for, or the disk is full.
        """
        n, px = len(self._pack(split)), image_format.image_px
        name = f"{split}-evaluation-{px}-{image_format.crop_pct:.6g}-{image_format.interpolation}"
        fill = partial(self._write_evaluation, split, image_format, progress)
        target = publish(self.directory / name, fill, n_bytes=n * px * px * 3)
        pixels: Pixels = np.load(target / "pixels.npy", mmap_mode="r")
        return pixels

    def _write_evaluation(
        self, split: str, image_format: ImageFormat, progress: Progress | None, directory: Path
    ) -> None:
        transform = evaluation_transform(image_format)
        n, px = len(self._pack(split)), image_format.image_px

        def evaluated(i: int) -> Pixels:
            return transform(Image.fromarray(self.original(split, i)))

        out = np.lib.format.open_memmap(
            directory / "pixels.npy", mode="w+", dtype=np.uint8, shape=(n, px, px, 3)
        )
        for i, image in enumerate(counted(in_threads(evaluated, range(n)), 0, n, progress)):
            out[i] = image
        out.flush()

    def statistics(self) -> statistics.Statistics:
        """Return mean and standard deviation of the training pixels, in [0, 1]; made once.

        Raises:
            DataError: train was not asked for, or the disk is full.
        """
        pack = self._pack("train")
        return statistics.cached(
            pack, pack.directory.with_name(f"{pack.directory.name}-statistics")
        )

    def _pack(self, split: str) -> packed.Packed:
        if split not in self.packs:
            message = (
                f"a split is prepared before it is read, got {split!r} of {tuple(self.packs)}; "
                f"prepare with splits=(…, {split!r}) if it may be read here"
            )
            raise DataError(message)
        return self.packs[split]


def decoded(item: Item, manifest: Manifest) -> Pixels:
    """Return an image of a manifest in its full size.

    Raises:
        DataError: the file has gone or changed since it was surveyed.
    """
    if item.path is None:
        if manifest.textures is None:
            message = f"an image without a path is rendered, got {item.key!r} and no textures"
            raise DataError(message)
        return manifest.textures.render(item.key)
    try:
        return np.asarray(decode(item.path))
    except UNREADABLE as error:
        message = f"{item.path} was sound before, got {error}; prepare the dataset again"
        raise DataError(message) from error


def counted(
    images: Iterable[Pixels], n_before: int, n_all: int, progress: Progress | None
) -> Iterator[Pixels]:
    """Yield the images and report how many have been taken."""
    for n, image in enumerate(images, start=n_before + 1):
        yield image
        if progress is not None:
            progress(n, n_all)
