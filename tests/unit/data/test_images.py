"""Evaluation pixels equal timm's own, from the file to the last bit."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageDataset, create_transform

from nbtl_search.data.images import ImageFormat, ten_crop
from nbtl_search.data.prepared import prepare
from nbtl_search.errors import DataError
from nbtl_search.spec import DataSettings


def timm_pixels(prepared, split: str, image_format: ImageFormat) -> np.ndarray:
    transform = create_transform(
        input_size=(3, image_format.image_px, image_format.image_px),
        is_training=False,
        interpolation=image_format.interpolation,
        crop_pct=image_format.crop_pct,
        use_prefetcher=True,
    )
    items = prepared.manifest.items(split)
    dataset = ImageDataset("", reader=_Reader([item.path for item in items]), transform=transform)
    return np.stack([dataset[i][0].permute(1, 2, 0).numpy() for i in range(len(dataset))])


class _Reader:
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int):
        return io.BytesIO(self.paths[i].read_bytes()), 0


def same_as_timm(settings: DataSettings, image_format: ImageFormat, home: Path) -> int:
    prepared = prepare(settings, home=home, splits=("train", "val", "test"))
    n = 0
    for split in ("train", "val", "test"):
        ours = prepared.evaluation(split, image_format)
        np.testing.assert_array_equal(ours, timm_pixels(prepared, split, image_format))
        n += len(ours)
    return n


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_every_mode_of_file(tmp_path, drawn, image_format, interpolation, crop_pct):
    root = tmp_path / "photos"
    for label in "ab":
        for i, (mode, suffix) in enumerate(
            [
                *(("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("RGBA", "png"), ("LA", "png")),
                *(("I;16", "png"), ("1", "png"), ("RGB", "webp"), ("P", "gif")),
            ]
        ):
            # 90 x 33 is larger than twice the input, 9 x 11 smaller than it.
            size = ((40, 52), (90, 33), (9, 11))[i % 3]
            path = root / label / f"{i}.{suffix}"
            if mode == "I;16":
                path.parent.mkdir(parents=True, exist_ok=True)
                deep = np.random.default_rng(i).integers(0, 65536, size=size, dtype=np.uint16)
                Image.fromarray(deep).save(path)
            else:
                drawn(path, seed=i, size=size, mode=mode)
    changed = {"crop_pct": crop_pct, "interpolation": interpolation}
    settings = DataSettings(dataset=str(root), image_px=16)
    assert same_as_timm(settings, ImageFormat(**(vars(image_format) | changed)), tmp_path) == 18


def test_exif_orientation_is_left_alone_as_timm_does(tmp_path, drawn, image_format):
    root = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    for label in "ab":
        for i in range(3):
            path = drawn(root / label / f"{i}.jpg", seed=i, size=(24, 60))
            Image.open(path).save(path, exif=exif)
    assert same_as_timm(DataSettings(dataset=str(root), image_px=16), image_format, tmp_path) == 6


@pytest.mark.data
@pytest.mark.parametrize("px", [112, 299])
def test_real_photographs(tmp_path, real_data, image_format, px):
    """Of every class a few, greyscale and huge ones among them; at 112 px many are reduced."""
    root = tmp_path / "photos"
    for source in ("dtd10/images", "caltech101_25/101_ObjectCategories"):
        for folder in sorted((real_data / source).iterdir()):
            (root / folder.name).mkdir(parents=True)
            for path in sorted(folder.glob("*.jpg"))[:3]:
                (root / folder.name / path.name).symlink_to(path)
    changed = ImageFormat(**(vars(image_format) | {"image_px": px}))
    settings = DataSettings(dataset=str(root), image_px=px)
    assert same_as_timm(settings, changed, tmp_path) == 108


def test_result_is_made_once_and_memory_mapped(settings, tmp_path, image_format):
    prepared = prepare(settings, home=tmp_path)
    first = prepared.evaluation("val", image_format)
    assert isinstance(first, np.memmap)
    assert first.shape == (6, 16, 16, 3)
    assert not first.flags.writeable
    before = sorted(p.stat().st_mtime_ns for p in prepared.directory.rglob("*"))
    prepared.evaluation("val", image_format)
    assert sorted(p.stat().st_mtime_ns for p in prepared.directory.rglob("*")) == before


def test_split_that_was_not_asked_for_is_refused(settings, tmp_path, image_format):
    prepared = prepare(settings, home=tmp_path)
    assert prepared.n_test == 6
    for read in (
        lambda: prepared.evaluation("test", image_format),
        lambda: prepared.pixels("test", 0),
        lambda: prepared.original("test", 0),
    ):
        with pytest.raises(DataError, match="got 'test'"):
            read()
    assert not list(prepared.directory.glob("test*"))


def test_ten_crop_is_five_places_and_their_mirrors(image_format):
    image = np.random.default_rng(0).integers(0, 256, size=(18, 24, 3), dtype=np.uint8)
    crops = ten_crop(image, image_format)
    assert crops.shape == (10, 16, 16, 3)
    # 16 / 0.875 = 18: nothing is resized, so the crops are parts of the image itself.
    places = [(0, 0), (0, 8), (2, 0), (2, 8), (1, 4)]
    for crop, (top, left) in zip(crops[:5], places, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 16])
    mirror = image[:, ::-1]
    for crop, (top, left) in zip(crops[5:], places, strict=True):
        np.testing.assert_array_equal(crop, mirror[top : top + 16, left : left + 16])


SIZES = [
    *((18, 18), (18, 24), (24, 18), (18, 19), (19, 18)),  # the shorter side is as it must be
    *((17, 17), (40, 40), (9, 11), (1, 3), (33, 90), (90, 33), (51, 40), (37, 401)),
]


def slices(pixels: np.ndarray, image_format: ImageFormat) -> list[np.ndarray]:
    """Cut corners and centre of the image and of its mirror image, by their coordinates."""
    px, side = image_format.image_px, int(image_format.image_px / image_format.crop_pct)
    (height, width), short = pixels.shape[:2], min(pixels.shape[:2])
    size = (int(side * width / short), int(side * height / short))
    resampling = Image.Resampling[image_format.interpolation.upper()]
    resized = np.asarray(Image.fromarray(pixels).resize(size, resampling))
    down, right = resized.shape[0] - px, resized.shape[1] - px
    # Half a pixel goes to the even side, as torchvision rounds.
    centre = (down // 2 + (down % 4 == 3), right // 2 + (right % 4 == 3))
    places = [(0, 0), (0, right), (down, 0), (down, right), centre]
    return [
        view[top : top + px, left : left + px]
        for view in (resized, np.fliplr(resized))
        for top, left in places
    ]


@pytest.mark.parametrize("crop_pct", [0.875, 0.77, 0.7, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_ten_crop_is_its_transcription(image_format, size, interpolation, crop_pct):
    image = np.random.default_rng(size).integers(0, 256, size=(*size, 3), dtype=np.uint8)
    changed = replace(image_format, crop_pct=crop_pct, interpolation=interpolation)
    np.testing.assert_array_equal(ten_crop(image, changed), slices(image, changed))


@pytest.mark.data
def test_ten_crops_of_real_photographs(real_data, image_format):
    changed = replace(image_format, image_px=299)
    photographs = sorted((real_data / "dtd10" / "images").glob("*/*.jpg"))[::40]
    assert len(photographs) >= 10
    for path in photographs:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(ten_crop(pixels, changed), slices(pixels, changed))
