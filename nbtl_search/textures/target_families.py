"""The families of the demo's task. None of their processes occurs among the source families."""

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
    wave,
)

TAU = 2 * np.pi
ROOT_3 = float(np.sqrt(3))


def _hexagon(u: Field, v: Field) -> tuple[Field, Field]:
    """Return the place inside the nearest cell of a hexagonal lattice with cells 1 wide."""
    rows = v / ROOT_3
    even = (u - np.round(u), (rows - np.round(rows)) * ROOT_3)
    odd = (u - np.floor(u) - 0.5, (rows - np.floor(rows) - 0.5) * ROOT_3)
    nearer = even[0] ** 2 + even[1] ** 2 < odd[0] ** 2 + odd[1] ** 2
    return np.where(nearer, even[0], odd[0]), np.where(nearer, even[1], odd[1])


def honeycomb(grid: Grid) -> Field:
    """Draw the walls of hexagonal cells."""
    u, v = (np.abs(place) for place in _hexagon(grid.u, grid.v))
    edge = 0.5 - np.maximum(u, 0.5 * u + 0.5 * ROOT_3 * v)
    return rise(edge - grid.uniform(0.05, 0.12), 0.04)


def herringbone(grid: Grid) -> Field:
    """Draw columns of slanted bricks whose slant alternates."""
    wide = grid.uniform(1.6, 2.4)
    slant = np.where(np.floor(grid.u / wide) % 2 > 0, grid.u, -grid.u)
    brick = rise(np.abs(inside(grid.v + slant)) - grid.uniform(0.08, 0.16), 0.05)
    seam = rise(wide * (0.5 - np.abs(inside(grid.u / wide))) - 0.06, 0.05)
    return brick * seam


def marble(grid: Grid) -> Field:
    """Draw a grating whose phase is driven by turbulence."""
    turbulence = octaves(grid, round(grid.uniform(2.0, 3.0)), count=4, gain=0.5)
    vein = np.abs(np.sin(np.pi * (0.5 * grid.u + grid.uniform(0.5, 0.9) * turbulence)))
    return vein ** grid.uniform(0.4, 0.8)


def wood(grid: Grid) -> Field:
    """Draw growth rings cut along the trunk, with pores."""
    reach = grid.cells
    far = grid.v - grid.v.mean() + grid.uniform(0.1, 0.5) * reach
    ring = np.hypot((grid.u - grid.u.mean()) * grid.uniform(0.1, 0.25), far)
    ring = ring + 0.3 * noise(grid.rng, grid.size_px, 3)
    late = ring - np.floor(ring)
    pores = noise(grid.rng, grid.size_px, 8, 24)
    drawn: Field = late**2 + 0.08 * pores
    return drawn


def scales(grid: Grid) -> Field:
    """Draw overlapping round scales in staggered rows."""
    row = np.floor(2 * grid.v)
    best = np.zeros_like(grid.u)
    for above in (2, 1, 0):
        level = row - above
        u = inside(grid.u + 0.5 * (level % 2))
        v = grid.v - level / 2
        distance = np.hypot(u, v - 0.1)
        shade = 0.25 + 0.75 * np.clip(distance / 0.62, 0, 1) ** 2
        best = np.where(distance < 0.62, shade, best)
    return best


def zigzag(grid: Grid) -> Field:
    """Draw bands folded into chevrons."""
    fold = grid.uniform(0.5, 1.1) * triangle(grid.v * grid.uniform(0.4, 0.8))
    return rise(wave(grid.u + fold) - grid.uniform(0.35, 0.65), grid.uniform(0.1, 0.4))


def labyrinth(grid: Grid) -> Field:
    """Draw what reaction and diffusion leave: winding bands of one width, in no direction.

    Many plane waves of one length and all directions, then a threshold (a Gaussian random field
    on a ring of frequencies has the same look as Turing's patterns).
    """
    total = np.zeros_like(grid.u)
    for angle in np.linspace(0, np.pi, 7, endpoint=False) + grid.uniform(0.0, 0.3):
        length = grid.uniform(0.9, 1.1)
        along = (np.cos(angle) * grid.u + np.sin(angle) * grid.v) * length
        total += np.sin(TAU * (along + grid.uniform(0.0, 1.0)))
    return rise(total - grid.uniform(-0.5, 0.5), grid.uniform(0.2, 1.0))


def plaid(grid: Grid) -> Field:
    """Draw tartan: bands of several widths, the same in both directions."""
    widths = grid.rng.random(8)
    widths[::3] = np.round(widths[::3])
    u = widths[np.floor(2 * grid.u).astype(np.int64) % 8]
    v = widths[np.floor(2 * grid.v).astype(np.int64) % 8]
    twill = triangle(4 * (grid.u + grid.v)) > 0.5
    return 0.5 * (u + v) + 0.2 * np.where(twill, u - v, v - u)


def pebbles(grid: Grid) -> Field:
    """Draw rounded stones of several sizes that lie on one another, lit from one side."""
    total = np.full_like(grid.u, 0.1)
    for layer, size in enumerate((0.9, 1.3, 1.9)):
        plane = grid.turned(0.7 + layer)
        u, v = plane.u / size, plane.v / size
        drawn = per_cell(grid, u, v)
        radius = 0.32 + 0.16 * drawn
        a, b = inside(u), inside(v) * 1.2
        height = 1 - (a * a + b * b) / radius**2
        shade = 0.45 + 0.35 * np.sqrt(np.clip(height, 0, 1)) + 0.5 * (a + b)
        total = np.where((height > 0) & (drawn < 0.65), shade, total)
    return total


def lace(grid: Grid) -> Field:
    """Draw round holes in hexagonal order, each in a ring of small holes."""
    u, v = _hexagon(grid.u / 1.7, grid.v / 1.7)
    distance, angle = np.hypot(u, v), np.arctan2(v, u)
    around = round(grid.uniform(8.0, 12.0))
    holes = rise(np.cos(around * angle) - 0.1, 0.4) * rise(0.07 - np.abs(distance - 0.36), 0.04)
    return np.maximum(rise(grid.uniform(0.16, 0.24) - distance, 0.04), holes)


def spiral(grid: Grid) -> Field:
    """Draw a spiral in each cell."""
    u, v = inside(grid.u / 2.2), inside(grid.v / 2.2)
    turn = np.arctan2(v, u) / TAU * (1 if grid.uniform(0.0, 1.0) < 0.5 else -1)
    distance = np.hypot(u, v)
    return rise(wave(distance * grid.uniform(5.0, 7.0) + turn) - 0.5, 0.35) * rise(
        0.5 - distance, 0.06
    )


def basket(grid: Grid) -> Field:
    """Draw square blocks of parallel canes, across and along in turn."""
    block = grid.uniform(1.6, 2.2)
    u, v = grid.u / block, grid.v / block
    along = (np.floor(u) + np.floor(v)) % 2 > 0
    canes = round(grid.uniform(3.0, 4.0))
    cane = np.where(along, triangle(u * canes), triangle(v * canes))
    end = np.where(along, np.abs(inside(v)), np.abs(inside(u)))
    lit: Field = np.sqrt(1 - cane)
    return lit * rise(0.46 - end, 0.05)


def knit(grid: Grid) -> Field:
    """Draw columns of V-shaped stitches."""
    u = inside(grid.u)
    lean = grid.v - grid.uniform(0.9, 1.3) * np.abs(u)
    stitch = np.cos(np.pi * inside(lean * 1.4)) * np.cos(np.pi * (2 * np.abs(u) - 0.5))
    raised: Field = np.clip(stitch, 0, 1) ** 0.7
    return raised


def truchet(grid: Grid) -> Field:
    """Draw tiles of two quarter circles, turned by chance, which join into endless curves."""
    turned = per_cell(grid, grid.u, grid.v) < 0.5
    u, v = inside(grid.u) + 0.5, inside(grid.v) + 0.5
    u = np.where(turned, 1 - u, u)
    nearest = np.minimum(
        np.abs(np.hypot(u, v) - 0.5),
        np.abs(np.hypot(1 - u, 1 - v) - 0.5),
    )
    return rise(grid.uniform(0.1, 0.2) - nearest, 0.05)


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        honeycomb,
        herringbone,
        marble,
        wood,
        scales,
        zigzag,
        labyrinth,
        plaid,
        pebbles,
        lace,
        spiral,
        basket,
        knit,
        truchet,
    )
}
