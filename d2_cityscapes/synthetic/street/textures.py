"""Noise, stripes, sky and simple walls, as arrays.

N pixels are painted. On upright planes `along` (N,) is the place along the plane, `up` (N,) the
height above the ground and `pixel` (N,) the size of a pixel there, in metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from d2_cityscapes.synthetic.street.camera import Camera, Light

__all__ = [
    "TILE",
    "blend",
    "boards",
    "cloudy_sky",
    "masonry",
    "noise",
    "noise_tile",
    "sample_plane",
    "stripe",
]

TILE = 512  # pixels on a side of a repeating noise texture


def noise(rng: np.random.Generator, height: int, width: int, cells: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 smooth noise in about -1..1 with ``cells`` (rows, columns) of bumps."""
    coarse = rng.uniform(-1, 1, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def noise_tile(rng: np.random.Generator, *cells: int, fine: float = 0.0) -> np.ndarray:
    """(TILE, TILE) float32 noise around 0: an octave per number of ``cells``, and white noise."""
    white = rng.uniform(-1, 1, (TILE, TILE)) if fine else rng.random((TILE, TILE))  # drawn anyway
    tile = fine * white.astype(np.float32)
    for count in cells:
        tile += noise(rng, TILE, TILE, (count, count))
    return tile.astype(np.float32)


def sample_plane(
    tile: np.ndarray, along: np.ndarray, up: np.ndarray, per_metre: float
) -> np.ndarray:
    """(N,) values of a repeating texture on an upright plane."""
    rows = (np.abs(up) * per_metre).astype(np.int32) % TILE
    columns = (np.abs(along) * per_metre).astype(np.int32) % TILE
    return tile[rows, columns]


def stripe(position: np.ndarray, low: float, high: float, pixel: np.ndarray | float) -> np.ndarray:
    """Share 0..1 of each pixel inside low..high; ``pixel`` is a pixel's size in the same unit."""
    per_unit = np.float32(1) / pixel
    return _between_0_and_1((position - low) * per_unit + 0.5) * _between_0_and_1(
        (high - position) * per_unit + 0.5
    )


def _between_0_and_1(values: np.ndarray) -> np.ndarray:
    """In place; `np.clip` takes several times as long for few values."""
    return np.minimum(np.maximum(values, 0, out=values), 1, out=values)


def blend(target: np.ndarray, color: np.ndarray | Sequence[float], share: np.ndarray) -> None:
    """Mix a colour or (..., 3) colours into a (..., 3) array in place by shares (...)."""
    colors = np.asarray(color, dtype=np.float32)
    touched = np.nonzero(share)  # most marks cover little
    if colors.ndim > 1:
        colors = colors[touched]
    before = target[touched]
    target[touched] = before + share[touched][:, None] * (colors - before)


def cloudy_sky(
    camera: Camera, light: Light, rows: int, cloudiness: float, rng: np.random.Generator
) -> np.ndarray:
    """(rows, W, 3) float32: paler towards the horizon, soft clouds, glare around the sun."""
    width = camera.width
    up = np.linspace(1, 0, rows, dtype=np.float32)[:, None, None]
    zenith, haze = (np.array(c, dtype=np.float32) for c in (light.zenith, light.haze))
    sky = np.broadcast_to(haze + (zenith - haze) * up**0.8, (rows, width, 3)).copy()
    clouds = np.zeros((rows, width), dtype=np.float32)
    for cells, weight in ((3, 1.0), (6, 0.55), (13, 0.32), (28, 0.18)):
        wide = max(2, int(0.5 * cells * width / rows))
        clouds += weight * noise(rng, rows, width, (cells, wide))
    white = 238 - 26 * np.clip(clouds, 0, 1) - 26 * np.float32(cloudiness)
    tinted = np.stack([white, white + 1, white + 4], axis=-1)
    cover = np.clip(1.1 * (clouds + np.float32(2.4 * cloudiness - 1.2)), 0, 1)
    blend(sky, tinted, np.float32(0.85) * cover)
    if light.sun[2] > 0.1:
        x = camera.center_x + camera.focal * light.sun[0] / light.sun[2]
        y = camera.horizon - camera.focal * light.sun[1] / light.sun[2]
        columns = np.exp(-3.5 * ((np.arange(width) - x) / camera.focal) ** 2)
        lines = np.exp(-3.5 * ((np.arange(rows) - y) / camera.focal) ** 2)
        glare = (0.5 * light.strength) * lines[:, None] * columns[None, :]
        blend(sky, (255, 250, 235), glare.astype(np.float32))
    return sky


def masonry(
    along: np.ndarray, up: np.ndarray, pixel: np.ndarray, top: float, tile: np.ndarray
) -> np.ndarray:
    """(N,) brightness of a stone wall ``top`` metres high; ``tile`` is a noise texture."""
    near = np.clip(1.2 - pixel * 22, 0, 1)
    course = np.floor(up / 0.26)
    joint = (up - 0.26 * course < 0.035) | ((along + 0.3 * (course % 2)) % 0.6 < 0.04)
    factor = 1 + 0.06 * sample_plane(tile, along, up, 40) - 0.18 * joint * near
    return factor * np.where(up > top - 0.16, 1.14, 1.0)


def boards(
    along: np.ndarray, up: np.ndarray, pixel: np.ndarray, top: float, tile: np.ndarray
) -> np.ndarray:
    """(N,) brightness of a fence of slats, rails and posts, ``top`` metres high."""
    near = np.clip(1.2 - pixel * 22, 0, 1)
    rails = (np.abs(up - 0.3) < 0.06) | (np.abs(up - top + 0.25) < 0.06)
    post = along % 2.4 < 0.14
    solid = np.where((along % 0.22 < 0.12) | rails | post, 1.0, 0.45)
    factor = (1 + 0.04 * sample_plane(tile, along, up, 40)) * (solid * near + 0.8 * (1 - near))
    return factor * np.where(post, 0.85, 1.0)
