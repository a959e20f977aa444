"""Small datasets made on the spot, and the folder of real photographs."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nbtl_search.data.images import ImageFormat
from nbtl_search.spec import DataSettings


@pytest.fixture
def real_data() -> Path:
    return Path(os.environ["NBTL_REAL_DATA"])


def draw(path: Path, *, seed: int = 0, size: tuple[int, int] = (40, 52), mode: str = "RGB") -> Path:
    """Save smooth coloured noise; `size` is (height, width)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, size=(size[0] // 4 + 1, size[1] // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path, quality=92)
    return path


@pytest.fixture
def drawn() -> Callable[..., Path]:
    return draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of ten images, one folder each."""
    root = tmp_path / "photos"
    for label, name in enumerate(("ash", "birch", "cedar")):
        for i in range(10):
            draw(root / name / f"{i}.jpg", seed=label * 100 + i)
    return root


@pytest.fixture
def settings(folder: Path) -> DataSettings:
    return DataSettings(dataset=str(folder), image_px=16)


@pytest.fixture
def image_format() -> ImageFormat:
    return ImageFormat(
        image_px=16,
        crop_pct=0.875,
        interpolation="bicubic",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
