"""Prepared datasets: decoded once on disk, memory-mapped by every process of a node.

`prepare` makes what is missing. Below the folder of a dataset's digest lie, for each split, the
pixels as training sees them, and for each format those of the evaluation.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import final

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from nbtl_search.data import datasets
from nbtl_search.data.images import UNREADABLE, ImageFormat, Pixels, decode, evaluation_transform
from nbtl_search.data.splits import Item, Manifest
from nbtl_search.data.survey import Survey, in_threads, read_survey, survey
from nbtl_search.errors import DataError
from nbtl_search.files.shared_folder import publish
from nbtl_search.spec import DataSettings, Progress

# Never test: whoever searches cannot read it, even by mistake.
SEARCH_SPLITS = ("train", "val")

Triple = tuple[float, float, float]


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
        # JSON keeps every digit of a float: what is read is what was measured, bit for bit.
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
    packs: Mapping[str, Packed]
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

    def statistics(self) -> Statistics:
        """Return mean and standard deviation of the training pixels, in [0, 1]; made once.

        Raises:
            DataError: train was not asked for, or the disk is full.
        """
        pack = self._pack("train")
        return cached(pack, pack.directory.with_name(f"{pack.directory.name}-statistics"))

    def _pack(self, split: str) -> Packed:
        if split not in self.packs:
            message = (
                f"a split is prepared before it is read, got {split!r} of {tuple(self.packs)}; "
                f"prepare with splits=(…, {split!r}) if it may be read here"
            )
            raise DataError(message)
        return self.packs[split]


def prepare(
    data: DataSettings,
    *,
    home: Path,
    skip_corrupt: bool = False,
    progress: Progress | None = None,
    splits: Sequence[str] = SEARCH_SPLITS,
    download: bool = True,
    cache: Path | None = None,
) -> Prepared:
    """Decode a dataset into files that all processes of a node share; what is there is reused.

    Args:
        data: which dataset, its split, and the size of the network's input.
        home: the folder for downloads and decoded images.
        skip_corrupt: leave damaged images out and record it, rather than refuse.
        progress: called with (done, total) in each phase: reading, then decoding.
        splits: which splits may be read; ask for test only to evaluate on it.
        download: fetch a registered dataset that is not on disk.
        cache: where decoded images lie instead of `home`, such as a disk of this node.

    Raises:
        DataError: the dataset cannot be had, is damaged or incomplete, or the disk is full.
    """
    listed = datasets.manifest(data, home=home, download=download)
    # Surveys stay in the home: they are small, and every node would read all images again.
    found = survey(
        listed, directory=home / "data" / "surveys", skip_corrupt=skip_corrupt, progress=progress
    )
    manifest = _sound(listed, found)
    directory = _directory(cache or home, found)
    n_all, n_done = sum(len(manifest.items(split)) for split in splits), 0
    for split in splits:
        items = manifest.items(split)
        side = _side(data, items, found)
        publish(
            directory / _pack_name(split, side),
            partial(_write_pack, items, manifest, side, (n_done, n_all, progress)),
            n_bytes=_n_bytes(items, found, side),
        )
        n_done += len(items)
    return _opened(data, manifest, found, directory, splits)


def open_prepared(
    data: DataSettings, *, home: Path, splits: Sequence[str] = SEARCH_SPLITS
) -> Prepared | None:
    """Return the dataset if it has been prepared from the files that are there now, else None.

    Raises:
        DataError: the dataset is unknown, or its folder is not as it must be.
    """
    known = data.dataset in datasets.REGISTRY and datasets.REGISTRY[data.dataset].marker
    if known and datasets.locate(data, home=home) is None:
        return None
    listed = datasets.manifest(data, home=home, download=False)
    found = read_survey(listed, directory=home / "data" / "surveys")
    if found is None:
        return None
    manifest, directory = _sound(listed, found), _directory(home, found)
    names = [_pack_name(s, _side(data, manifest.items(s), found)) for s in splits]
    if not all((directory / name).exists() for name in names):
        return None
    return _opened(data, manifest, found, directory, splits)


def _opened(
    data: DataSettings, manifest: Manifest, found: Survey, directory: Path, splits: Sequence[str]
) -> Prepared:
    packs = {
        split: Packed(directory / _pack_name(split, _side(data, manifest.items(split), found)))
        for split in splits
    }
    return Prepared(
        manifest=manifest,
        skipped=found.skipped,
        directory=directory,
        packs=packs,
        sizes=found.sizes,
    )


def _sound(listed: Manifest, found: Survey) -> Manifest:
    return replace(listed.without(found.skipped), digest=found.digest)


def _directory(home: Path, found: Survey) -> Path:
    # Another Pillow may decode or resize otherwise: its pixels are other pixels.
    return home / "data" / f"{found.digest[:32]}-pillow-{PIL.__version__}"


def _side(data: DataSettings, items: Iterable[Item], found: Survey) -> int | None:
    """Return the shorter side that larger images are reduced to; None if no image is larger.

    Twice the input leaves room for random crops; whole photographs would take far more disk.
    """
    limit = 2 * data.image_px
    return limit if any(min(found.sizes[item.key]) > limit for item in items) else None


def _pack_name(split: str, side: int | None) -> str:
    return f"{split}-full" if side is None else f"{split}-{side}"


def _reduced(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    height, width = size
    if side is None or min(size) <= side:
        return height, width
    return round(height * side / min(size)), round(width * side / min(size))


def _n_bytes(items: Iterable[Item], found: Survey, side: int | None) -> int:
    sizes = [_reduced(found.sizes[item.key], side) for item in items]
    return sum(height * width * 3 for height, width in sizes)


def _write_pack(
    items: Sequence[Item],
    manifest: Manifest,
    side: int | None,
    count: tuple[int, int, Progress | None],
    target: Path,
) -> None:
    images = in_threads(lambda item: _training_image(decoded(item, manifest), side), items)
    write(target, counted(images, *count))


def _training_image(pixels: Pixels, side: int | None) -> Pixels:
    height, width = _reduced((pixels.shape[0], pixels.shape[1]), side)
    if (height, width) == pixels.shape[:2]:
        return pixels
    # Pillow's resize averages over all source pixels (antialiased).
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


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
