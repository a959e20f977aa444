"""The families to pre-train on. None of their processes occurs among the target families."""

import numpy as np

from nbtl_search.textures.fields import (
    Family,
    Field,
    Grid,
    inside,
    noise,
    octaves,
    per_cell,
    rise,
    triangle,
    voronoi,
    wave,
)

TAU = 2 * np.pi


def stripes(grid: Grid) -> Field:
    """Draw parallel bands."""
    return rise(wave(grid.u) - grid.uniform(0.3, 0.7), grid.uniform(0.05, 0.5))


def checker(grid: Grid) -> Field:
    """Draw a chessboard."""
    soft = grid.uniform(0.03, 0.3)
    return rise(np.sin(np.pi * grid.u) * np.sin(np.pi * grid.v), soft)


def dots(grid: Grid) -> Field:
    """Draw one disc in each cell of a square lattice."""
    radius = grid.uniform(0.2, 0.4)
    return rise(radius - np.hypot(inside(grid.u), inside(grid.v)), grid.uniform(0.03, 0.1))


def rings(grid: Grid) -> Field:
    """Draw one ring in each cell of a square lattice."""
    distance = np.hypot(inside(grid.u), inside(grid.v))
    away = np.abs(distance - grid.uniform(0.25, 0.38))
    return rise(grid.uniform(0.05, 0.09) - away, 0.04)


def clouds(grid: Grid) -> Field:
    """Draw fractal noise."""
    return 0.5 + 0.25 * octaves(grid, round(grid.uniform(2.0, 5.0)), gain=grid.uniform(0.45, 0.7))


def ridges(grid: Grid) -> Field:
    """Draw fractal noise folded at zero: sharp crests."""
    folded = np.abs(octaves(grid, round(grid.uniform(3.0, 6.0)), count=3))
    return 1 - np.clip(folded, 0, 1)


def mosaic(grid: Grid) -> Field:
    """Draw Voronoi cells of one shade each."""
    return voronoi(grid, jitter=0.9)[2]


def network(grid: Grid) -> Field:
    """Draw the borders of Voronoi cells."""
    first, second, _ = voronoi(grid, jitter=0.9)
    return rise(second - first - grid.uniform(0.06, 0.16), 0.05)


def ripples(grid: Grid) -> Field:
    """Draw circles around one far or near centre."""
    reach = grid.cells
    x, y = grid.uniform(-0.5, 0.5) * reach, grid.uniform(-0.5, 0.5) * reach
    middle = grid.u.shape[0] // 2
    u, v = grid.u - grid.u[middle, middle] - x, grid.v - grid.v[middle, middle] - y
    return wave(np.hypot(u, v))


def waves(grid: Grid) -> Field:
    """Draw bands that swing like a sine."""
    swing = grid.uniform(0.3, 0.6) * np.sin(TAU * grid.v * grid.uniform(0.3, 0.5))
    return rise(wave(grid.u + swing) - 0.5, grid.uniform(0.1, 0.4))


def bricks(grid: Grid) -> Field:
    """Draw running-bond masonry with mortar."""
    long = grid.uniform(1.8, 2.6)
    row = np.floor(grid.v)
    u = grid.u / long + 0.5 * (row % 2)
    mortar = grid.uniform(0.05, 0.1)
    edge = np.minimum((0.5 - np.abs(inside(u))) * long, 0.5 - np.abs(inside(grid.v)))
    return rise(edge - mortar, 0.04) * (0.6 + 0.4 * per_cell(grid, u, row))


def weave(grid: Grid) -> Field:
    """Draw threads that go over and under one another."""
    over = (np.floor(grid.u) + np.floor(grid.v)) % 2
    warp = np.cos(np.pi * inside(grid.u)) * (0.6 + 0.4 * np.cos(np.pi * inside(grid.v)))
    weft = np.cos(np.pi * inside(grid.v)) * (0.6 + 0.4 * np.cos(np.pi * inside(grid.u)))
    return np.where(over > 0, warp, 0.75 * weft)


def eggbox(grid: Grid) -> Field:
    """Draw the product of two gratings, unthresholded."""
    ratio = grid.uniform(0.7, 1.4)
    return wave(grid.u) * wave(grid.v * ratio)


def cracks(grid: Grid) -> Field:
    """Draw thin dark lines where noise changes sign."""
    n = round(grid.uniform(3.0, 6.0))
    line = np.abs(octaves(grid, n, count=3, gain=0.45))
    return rise(line - grid.uniform(0.05, 0.12), 0.05)


def spots(grid: Grid) -> Field:
    """Draw islands of thresholded noise."""
    n = round(grid.cells * grid.uniform(1.0, 1.6))
    return rise(noise(grid.rng, grid.size_px, n) - grid.uniform(0.3, 0.8), grid.uniform(0.1, 0.3))


def gabors(grid: Grid) -> Field:
    """Draw patches of grating, each with its own direction."""
    angle = np.pi * np.floor(8 * per_cell(grid, grid.u / 2, grid.v / 2)) / 8
    u, v = inside(grid.u / 2), inside(grid.v / 2)
    carrier = np.sin(TAU * 4 * (np.cos(angle) * u + np.sin(angle) * v))
    return 0.5 + 0.6 * carrier * np.exp(-9 * (u * u + v * v))


def crosses(grid: Grid) -> Field:
    """Draw a plus sign in each cell."""
    a, b = np.abs(inside(grid.u)), np.abs(inside(grid.v))
    arm, reach = grid.uniform(0.07, 0.13), grid.uniform(0.33, 0.42)
    return rise(arm - np.minimum(a, b), 0.03) * rise(reach - np.maximum(a, b), 0.03)


def triangles(grid: Grid) -> Field:
    """Draw the triangular tiling in two shades."""
    up = grid.turned(np.pi / 3)
    down = grid.turned(2 * np.pi / 3)
    signs = [np.sin(np.pi * plane.v) for plane in (grid, up, down)]
    return rise(signs[0] * signs[1] * signs[2], grid.uniform(0.02, 0.1))


def dashes(grid: Grid) -> Field:
    """Draw rows of dashes, each row shifted by chance."""
    shift = 5 * per_cell(grid, np.zeros_like(grid.u), grid.v)
    along = triangle(grid.u / grid.uniform(1.8, 3.0) + shift) - grid.uniform(0.35, 0.6)
    return rise(along, 0.08) * rise(grid.uniform(0.2, 0.35) - np.abs(inside(grid.v)), 0.05)


def rays(grid: Grid) -> Field:
    """Draw beams from one point near the image."""
    middle = grid.u.shape[0] // 2
    u = grid.u - grid.u[middle, middle] + grid.uniform(-0.4, 0.4) * grid.cells
    v = grid.v - grid.v[middle, middle] + grid.uniform(-0.4, 0.4) * grid.cells
    return rise(wave(np.arctan2(v, u) / TAU * round(grid.uniform(14.0, 30.0))) - 0.5, 0.2)


def terraces(grid: Grid) -> Field:
    """Draw smooth noise in a few flat steps, like a contour map."""
    height = noise(grid.rng, grid.size_px, round(grid.uniform(3.0, 5.0)))
    steps = grid.uniform(3.0, 6.0)
    return np.floor(height * steps) % 3 / 2


def moire(grid: Grid) -> Field:
    """Draw the exclusive or of two gratings at a small angle."""
    other = grid.turned(grid.uniform(0.15, 0.4))
    ratio = grid.uniform(0.85, 1.15)
    return rise(np.sin(TAU * grid.u) * np.sin(TAU * other.u * ratio), grid.uniform(0.1, 0.5))


def diamonds(grid: Grid) -> Field:
    """Draw nested diamonds in each cell."""
    distance = np.abs(inside(grid.u)) + np.abs(inside(grid.v)) * grid.uniform(0.6, 1.0)
    return wave(distance * grid.uniform(2.0, 3.0))


def scratches(grid: Grid) -> Field:
    """Draw a few dozen straight strokes in all directions."""
    total = np.zeros_like(grid.u)
    span = np.linspace(-1, 1, grid.size_px)
    for _ in range(14):
        angle, offset = grid.uniform(0.0, np.pi), grid.uniform(-1.0, 1.0)
        away = np.abs(np.cos(angle) * span[:, None] + np.sin(angle) * span[None, :] - offset)
        total = np.maximum(total, rise(grid.uniform(0.01, 0.03) - away, 0.02))
    return total


def mesh(grid: Grid) -> Field:
    """Draw two families of thin lines that cross."""
    other = grid.turned(grid.uniform(0.25, 0.5) * np.pi)
    nearest = np.minimum(np.abs(inside(grid.u)), np.abs(inside(other.u)))
    return rise(nearest - grid.uniform(0.06, 0.14), 0.05)


def flakes(grid: Grid) -> Field:
    """Draw ellipses of random direction, one in each cell."""
    angle = np.pi * per_cell(grid, grid.u, grid.v)
    u, v = inside(grid.u), inside(grid.v)
    a = np.cos(angle) * u + np.sin(angle) * v
    b = np.cos(angle) * v - np.sin(angle) * u
    return rise(grid.uniform(0.33, 0.42) - np.hypot(a, b * grid.uniform(2.2, 3.5)), 0.05)


def rosettes(grid: Grid) -> Field:
    """Draw a flower in each cell."""
    u, v = inside(grid.u / 1.6), inside(grid.v / 1.6)
    petals = round(grid.uniform(4.0, 8.0))
    radius = 0.28 + 0.12 * np.cos(petals * np.arctan2(v, u))
    return rise(radius - np.hypot(u, v), 0.05)


def grain(grid: Grid) -> Field:
    """Draw noise stretched in one direction of the image."""
    n = round(grid.uniform(2.0, 4.0))
    counts = (n, n * round(grid.uniform(6.0, 9.0)))
    if grid.uniform(0.0, 1.0) < 0.5:
        counts = counts[::-1]
    return 0.5 + 0.3 * noise(grid.rng, grid.size_px, *counts)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        stripes,
        checker,
        dots,
        rings,
        clouds,
        ridges,
        mosaic,
        network,
        ripples,
        waves,
        bricks,
        weave,
        eggbox,
        cracks,
        spots,
        gabors,
        crosses,
        triangles,
        dashes,
        rays,
        terraces,
        moire,
        diamonds,
        scratches,
        mesh,
        flakes,
        rosettes,
        grain,
    )
}
