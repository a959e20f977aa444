"""Fields that procedural textures are made of: cell coordinates, smooth noise, cell attributes.

Everything is float64: the last bits of sine and power differ between processors, and in float64
they practically never reach one of the 256 grey levels, so a seed gives the same image anywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]
Family = Callable[["Grid"], Field]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The plane a texture is drawn on: rotated, shifted, scaled so that a cell has side 1."""

    rng: np.random.Generator
    u: Field
    v: Field

    @property
    def size_px(self) -> int:
        """Side of the image."""
        return len(self.u)

    @property
    def cells(self) -> float:
        """How many cells lie across the image, about."""
        return float(np.hypot(self.u[0, -1] - self.u[0, 0], self.v[0, -1] - self.v[0, 0]))

    def turned(self, angle: float) -> "Grid":
        """Return the plane rotated by an angle in radians."""
        u = np.cos(angle) * self.u - np.sin(angle) * self.v
        v = np.sin(angle) * self.u + np.cos(angle) * self.v
        return Grid(rng=self.rng, u=u, v=v)

    def bent(self, amount: float, n: int = 4) -> "Grid":
        """Return the plane displaced by smooth noise of so many cells."""
        u = self.u + amount * noise(self.rng, self.size_px, n)
        v = self.v + amount * noise(self.rng, self.size_px, n)
        return Grid(rng=self.rng, u=u, v=v)

    def uniform(self, low: float, high: float) -> float:
        """Draw one number."""
        return float(self.rng.uniform(low, high))


@lru_cache(maxsize=256)
def _spline(size_px: int, n: int) -> Field:
    """Return the (size, n + 3) matrix of uniform cubic B-splines with n spans over the image."""
    t = np.linspace(0, n, size_px, endpoint=False)
    cell, f = t.astype(np.int64), t % 1
    weights = np.stack(
        [
            (1 - f) ** 3 / 6,
            (3 * f**3 - 6 * f**2 + 4) / 6,
            (-3 * f**3 + 3 * f**2 + 3 * f + 1) / 6,
            f**3 / 6,
        ]
    )
    matrix = np.zeros((size_px, n + 3))
    for offset in range(4):
        matrix[np.arange(size_px), cell + offset] = weights[offset]
    return matrix


def noise(rng: np.random.Generator, size_px: int, n: int, m: int | None = None) -> Field:
    """Return smooth noise of variance about 1, with n (by m) bumps across the image."""
    m = n if m is None else m
    knots = rng.standard_normal((n + 3, m + 3))
    return 2.0 * (_spline(size_px, n) @ knots @ _spline(size_px, m).T)


def octaves(grid: Grid, n: int, *, count: int = 4, gain: float = 0.5) -> Field:
    """Return noise summed over octaves, each with twice the bumps and `gain` of the height."""
    layers = [gain**k * noise(grid.rng, grid.size_px, n * 2**k) for k in range(count)]
    total: Field = np.sum(layers, axis=0)
    return total


def per_cell(grid: Grid, u: Field, v: Field) -> Field:
    """Return a number in [0, 1) for each unit cell, the same all over the cell."""
    table = grid.rng.random(4096)
    place = np.floor(u).astype(np.int64) * 73 + np.floor(v).astype(np.int64) * 1021
    drawn: Field = table[place & 4095]
    return drawn


def rise(x: Field, width: float) -> Field:
    """Return 0 below -width, 1 above width, smooth between: an edge of that softness."""
    t = np.clip(x / (2 * width) + 0.5, 0, 1)
    smooth: Field = t * t * (3 - 2 * t)
    return smooth


def wave(x: Field) -> Field:
    """Return a sine of period 1 between 0 and 1."""
    shifted: Field = 0.5 + 0.5 * np.sin(2 * np.pi * x)
    return shifted


def triangle(x: Field) -> Field:
    """Return a triangle wave of period 1 between 0 and 1."""
    folded: Field = 2 * np.abs(x - np.floor(x) - 0.5)
    return folded


def inside(x: Field) -> Field:
    """Return the place inside a unit cell, from -0.5 to 0.5."""
    centred: Field = x - np.floor(x) - 0.5
    return centred


def voronoi(grid: Grid, *, jitter: float = 0.7) -> tuple[Field, Field, Field]:
    """Return the distances to the nearest and second nearest seed, and a number per cell.

    One seed lies in each unit cell, `jitter` of it away from the middle at most.
    """
    tables = grid.rng.random((3, 4096))
    first = np.full(grid.u.shape, np.inf)
    second = first.copy()
    owner = np.zeros_like(first)
    column, row = np.floor(grid.u).astype(np.int64), np.floor(grid.v).astype(np.int64)
    du, dv = grid.u - column - 0.5, grid.v - row - 0.5
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            place = ((column + i) * 73 + (row + j) * 1021) & 4095
            x = du - i - jitter * (tables[0][place] - 0.5)
            y = dv - j - jitter * (tables[1][place] - 0.5)
            distance = x * x + y * y
            nearer = distance < first
            second = np.where(nearer, first, np.minimum(second, distance))
            owner = np.where(nearer, tables[2][place], owner)
            first = np.where(nearer, distance, first)
    return np.sqrt(first), np.sqrt(second), owner
