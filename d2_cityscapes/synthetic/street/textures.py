"""Noise, stripes, sky and simple walls, as arrays.

N pixels are painted. On upright planes `along` (N,) is the place along the plane, `up` (N,) the
height above the ground and `pixel` (N,) the size of a pixel there, in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.colors import column

__all__ = [
    "TILE",
    "between_0_and_1",
    "blend",
    "boards",
    "cloudy_sky",
    "masonry",
    "noise",
    "noise_tile",
    "repeat",
    "sample_plane",
    "stripe",
]

TILE = 512  # pixels on a side of a repeating noise texture, a power of 2


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 smooth noise in about -1..1 with ``cells`` (rows, columns) of bumps."""
    coarse = rng.uniform(-1, 1, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def noise_tile(rng: np.random.Generator, *cells: int, fine: float = 0.0) -> np.ndarray:
    """(TILE, TILE) float32 noise around 0: an octave per number of ``cells``, and white noise."""
    tile = np.zeros((TILE, TILE), dtype=np.float32)
    if fine:
        tile += np.float32(fine) * rng.uniform(-1, 1, tile.shape).astype(np.float32)
    else:  # as many numbers are drawn
        rng.bit_generator.random_raw(tile.size, output=False)
    for count in cells:
        tile += noise(rng, TILE, TILE, (count, count))
    return tile


def sample_plane(
    tile: np.ndarray, along: np.ndarray, up: np.ndarray, per_metre: float
) -> np.ndarray:
    """(N,) values of a repeating texture on an upright plane."""
    return tile[repeat(np.abs(up) * per_metre), repeat(np.abs(along) * per_metre)]


def repeat(positions: np.ndarray) -> np.ndarray:
    """(N,) int32 rows or columns of a repeating texture, ``positions`` px from its start."""
    return positions.astype(np.int32) & (TILE - 1)


def stripe(position: np.ndarray, low: float, high: float, pixel: np.ndarray | float) -> np.ndarray:
    """Share 0..1 of each pixel inside low..high; ``pixel`` is a pixel's size in the same unit."""
    per_unit = np.float32(1) / pixel
    share = (position - low) * per_unit
    share += 0.5
    until = (high - position) * per_unit
    until += 0.5
    share = between_0_and_1(share)
    share *= between_0_and_1(until)
    return share


def between_0_and_1(values: np.ndarray) -> np.ndarray:
    """In place; `np.clip` takes several times as long for few values."""
    return np.minimum(np.maximum(values, 0, out=values), 1, out=values)


def blend(target: np.ndarray, color: np.ndarray | Sequence[float], share: np.ndarray) -> None:
    """Mix a colour or (3, N) colours into a (3, N) array in place by shares (N,)."""
    colors = np.asarray(color, dtype=np.float32)
    colors = colors if colors.ndim > 1 else colors[:, None]
    target += share * (colors - target)


def cloudy_sky(
    camera: Camera, light: Light, rows: int, cloudiness: float, rng: np.random.Generator
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Paint of ``rows`` rows: paler towards the horizon, soft clouds, glare around the sun.

    It takes columns and rows (N,) and gives colours (3, N) float32.
    """
    width = camera.width
    up = np.linspace(1, 0, rows, dtype=np.float32)
    zenith, haze = column(light.zenith), column(light.haze)
    clear = haze + (zenith - haze) * up**0.8
    clouds = np.zeros((rows, width), dtype=np.float32)
    for cells, weight in ((3, 1.0), (6, 0.55), (13, 0.32), (28, 0.18)):
        wide = max(2, int(0.5 * cells * width / rows))
        clouds += weight * noise(rng, rows, width, (cells, wide))
    columns, lines = np.zeros(width), np.zeros(rows)  # how much the sun shines there
    if light.sun[2] > 0.1:
        sun_x = camera.center_x + camera.focal * light.sun[0] / light.sun[2]
        sun_y = camera.horizon - camera.focal * light.sun[1] / light.sun[2]
        columns = np.exp(-3.5 * ((np.arange(width) - sun_x) / camera.focal) ** 2)
        lines = np.exp(-3.5 * ((np.arange(rows) - sun_y) / camera.focal) ** 2)
        lines *= 0.5 * light.strength

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        colors, cloud = clear[:, y], clouds[y, x]
        cover = between_0_and_1(1.1 * (cloud + np.float32(2.4 * cloudiness - 1.2)))
        white = 238 - 26 * between_0_and_1(cloud) - 26 * np.float32(cloudiness)
        tinted = np.stack([white, white + 1, white + 4])
        blend(colors, tinted, np.float32(0.85) * cover)
        blend(colors, (255, 250, 235), (lines[y] * columns[x]).astype(np.float32))
        return colors

    return paint


def masonry(
    along: np.ndarray, up: np.ndarray, pixel: np.ndarray, top: float, tile: np.ndarray
) -> np.ndarray:
    """(N,) brightness of a stone wall ``top`` metres high; ``tile`` is a noise texture."""
    near = between_0_and_1(1.2 - pixel * 22)
    course = np.floor(up / 0.26)
    joint = (up - 0.26 * course < 0.035) | ((along + 0.3 * (course % 2)) % 0.6 < 0.04)
    factor = 1 + 0.06 * sample_plane(tile, along, up, 40) - 0.18 * joint * near
    return factor * np.where(up > top - 0.16, 1.14, 1.0)


def boards(
    along: np.ndarray, up: np.ndarray, pixel: np.ndarray, top: float, tile: np.ndarray
) -> np.ndarray:
    """(N,) brightness of a fence of slats, rails and posts, ``top`` metres high."""
    near = between_0_and_1(1.2 - pixel * 22)
    rails = (np.abs(up - 0.3) < 0.06) | (np.abs(up - top + 0.25) < 0.06)
    post = along % 2.4 < 0.14
    solid = np.where((along % 0.22 < 0.12) | rails | post, 1.0, 0.45)
    factor = (1 + 0.04 * sample_plane(tile, along, up, 40)) * (solid * near + 0.8 * (1 - near))
    return factor * np.where(post, 0.85, 1.0)
