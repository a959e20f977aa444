"""Decoded images of any size in one memory-mapped file, shared by all processes of a node."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@final
class Packed:
    """Images as written by `write`; opened when first looked at, so that it pickles as a path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[type["Packed"], tuple[Path]]:
        return Packed, (self.directory,)

    @cached_property
    def _shapes(self) -> NDArray[np.int64]:
        shapes: NDArray[np.int64] = np.load(self.directory / "shapes.npy")
        return shapes

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self._shapes.prod(axis=1) * 3)])

    @cached_property
    def _bytes(self) -> Pixels:
        # A plain view: np.memmap's own bookkeeping costs 10 times the slicing itself.
        return np.asarray(np.memmap(self.directory / "pixels.bin", dtype=np.uint8, mode="r"))

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, i: int) -> Pixels:
        """Return a read-only view of image `i`, height x width x 3."""
        height, width = self._shapes[i]
        return self._bytes[self._starts[i] : self._starts[i + 1]].reshape(height, width, 3)


def write(directory: Path, images: Iterable[Pixels]) -> None:
    """Write images into `directory`, one behind the other."""
    shapes = []
    with (directory / "pixels.bin").open("wb") as file:
        for image in images:
            shapes.append(image.shape[:2])
            file.write(np.ascontiguousarray(image).data)
    np.save(directory / "shapes.npy", np.array(shapes, dtype=np.int64).reshape(-1, 2))
