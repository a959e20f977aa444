"""Procedural textures: many images of a few families, deterministic by seed.

Colour, light, scale, direction and contrast vary alike in every family, so the class can be read
from the structure only.
"""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nbtl_search.errors import DataError
from nbtl_search.textures import source_families, target_families
from nbtl_search.textures.fields import Field, Grid, noise

# Part of every key: an image of another version is another image. Tests hold some by their sha256.
VERSION = 1

TARGET_FAMILIES = tuple(sorted(target_families.FAMILIES))
SOURCE_FAMILIES = tuple(sorted(source_families.FAMILIES))
FAMILIES = target_families.FAMILIES | source_families.FAMILIES


@dataclass(frozen=True, kw_only=True)
class Textures:
    """How the images of a set of textures are rendered; keys are "family/index"."""

    seed: int
    size_px: int
    version: int = VERSION

    def render(self, key: str) -> NDArray[np.uint8]:
        """Return the image of a key.

        Raises:
            DataError: no family has this name.
        """
        family, _, index = key.partition("/")
        return render(family, seed=self.seed, index=int(index), size_px=self.size_px)


def render(family: str, *, seed: int, index: int, size_px: int) -> NDArray[np.uint8]:
    """Return one image of a family, height x width x 3, a pure function of its arguments.

    Raises:
        DataError: no family has this name.
    """
    if family not in FAMILIES:
        message = f"a texture family is one of {', '.join(FAMILIES)}, got {family!r}; name one"
        raise DataError(message)
    rng = np.random.default_rng((VERSION, seed, zlib.crc32(family.encode()), index))
    field = FAMILIES[family](_plane(rng, size_px))
    return _coloured(rng, _stretched(field))


def _plane(rng: np.random.Generator, size_px: int) -> Grid:
    """Return a plane of 4 to 9 cells across, turned, shifted, foreshortened and slightly bent."""
    cells = rng.uniform(4.0, 9.0)
    span = (np.arange(size_px) + 0.5) / size_px - 0.5
    y, x = np.meshgrid(span * cells, span * cells * rng.uniform(0.8, 1.25), indexing="ij")
    grid = Grid(rng=rng, u=x, v=y).turned(rng.uniform(0, 2 * np.pi))
    shift = rng.uniform(0, 64, size=2)
    moved = Grid(rng=rng, u=grid.u + shift[0], v=grid.v + shift[1])
    return moved.bent(rng.uniform(0.02, 0.22))


def _stretched(field: Field) -> Field:
    low, high = np.quantile(field[::3, ::3], (0.02, 0.98))
    scaled: Field = np.clip((field - low) / max(high - low, 1e-6), 0, 1)
    return scaled


def _coloured(rng: np.random.Generator, field: Field) -> NDArray[np.uint8]:
    """Lay the field between two colours, with uneven light, stains and grain."""
    size_px = len(field)
    mixed = field + rng.uniform(0.0, 0.35) * noise(rng, size_px, 3) * 0.5
    dark, light = _two_colours(rng)
    image = dark + mixed[..., None] * (light - dark)
    slope = np.linspace(-0.5, 0.5, size_px)
    across, down = rng.uniform(-0.5, 0.5, size=2)
    light_falls = 1 + across * slope[None, :] + down * slope[:, None]
    stains = rng.uniform(0.0, 0.08) * noise(rng, size_px, 5)
    grain = rng.uniform(0.01, 0.07) * rng.standard_normal((size_px, size_px))
    image = image * light_falls[..., None] + (stains + grain)[..., None]
    pixels: NDArray[np.uint8] = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return pixels


def _two_colours(rng: np.random.Generator) -> tuple[Field, Field]:
    """Draw two colours of any hue, in any order, whose brightness differs enough to be seen."""
    first, second = rng.uniform(0.05, 0.95, size=(2, 3))
    gap = rng.uniform(0.2, 0.55) * (1 if rng.uniform() < 0.5 else -1)
    second = second - (second.mean() - first.mean()) + gap
    return np.clip(first, 0, 1), np.clip(second, 0, 1)
