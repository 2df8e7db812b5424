"""House fronts: windows, shops, doors, ledges, as colours on an upright plane.

N pixels in C columns of the picture are painted. Of a column, `along` (C,) is the place along the
wall and `pixel` (C,) the size of a pixel there; of a pixel, `at` (N,) is its column and `up` (N,)
its height above the ground. All lengths are in metres.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.synthetic.street.camera import Light
from d2_cityscapes.synthetic.street.colors import Color, column, pick, vary
from d2_cityscapes.synthetic.street.textures import between_0_and_1, blend, repeat, stripe

__all__ = ["FacadeStyle", "facade"]

_WALLS: list[Color] = [
    (204, 184, 150), (178, 124, 96), (150, 88, 72), (214, 208, 196), (188, 168, 136),
    (160, 158, 154), (206, 176, 120), (172, 146, 130), (134, 132, 130), (196, 150, 128),
    (170, 176, 160), (224, 214, 186),
]  # fmt: skip
_ROOFS: list[Color] = [(142, 72, 54), (112, 64, 54), (84, 80, 82), (122, 90, 72)]
_GLASS = column((44, 52, 62))
_SHOP = column((112, 105, 88))
_PANES = 64  # windows differ, and repeat after so many, a power of 2


def _pane(number: np.ndarray) -> np.ndarray:
    return number.astype(np.int64) & (_PANES - 1)


class FacadeStyle:
    """The look of one house; lengths in metres, window sizes in shares of a bay and a storey."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.wall = column(vary(rng, _WALLS, 14))
        self.roof = column(pick(rng, _ROOFS))
        self.storey = rng.uniform(2.9, 3.7)
        self.bay = rng.uniform(1.9, 3.4)
        self.ground = rng.uniform(3.4, 4.3)  # height of the ground floor
        self.window = rng.uniform(0.42, 0.68), rng.uniform(0.5, 0.66)
        self.shops = rng.random() < 0.45
        self.courses = rng.random() < 0.3
        self.ledges = rng.random() < 0.6
        self.frame = column((232, 230, 222) if rng.random() < 0.7 else (84, 70, 58))
        self.sign = column(rng.uniform(30, 225, 3))
        self.panes = rng.uniform(0, 1, (_PANES, _PANES)).astype(np.float32)


def facade(
    style: FacadeStyle,
    along: np.ndarray,
    pixel: np.ndarray,
    at: np.ndarray,
    up: np.ndarray,
    light: Light,
    tile: np.ndarray,
) -> np.ndarray:
    """(3, N) float32 colours of a house front before shading; ``tile`` is a noise texture."""
    size = pixel[at]
    factor = 1 + 0.05 * tile[repeat(np.abs(up) * 24), repeat(np.abs(along) * 24)[at]]
    factor *= 0.88 + 0.12 * between_0_and_1(up / 2)  # dirt near the ground
    if style.courses:
        near = (0.16 * between_0_and_1(1.4 - pixel * 30))[at]
        factor *= 1 - near * stripe(up % 0.25, 0.0, 0.05, size)
    storey = (up - style.ground) / style.storey
    upper = between_0_and_1((up - style.ground) / size + 0.5)  # share of the pixel above the shops
    within = storey - np.floor(storey)
    if style.ledges:
        part = (pixel / style.storey)[at]
        factor *= 1 + 0.13 * upper * stripe(within, 0.0, 0.045, part)
        factor *= 1 - 0.14 * upper * stripe(within, 0.93, 1.0, part)
    if not style.shops:
        factor *= 1 - 0.22 * stripe(up, -1.0, 0.7, size)  # plinth
    colors = factor * style.wall
    bay = along / style.bay
    pane = style.panes[_pane(np.floor(storey)), _pane(np.floor(bay))[at]]
    sky = 0.8 * column(light.haze)
    _paint_windows(colors, style, bay, pixel, at, within, pane, sky, upper)
    low = np.flatnonzero(upper < 1)  # the ground floor
    paint, floor = _paint_shops if style.shops else _paint_entrance, colors[:, low]
    paint(floor, style, bay, pixel, at[low], up[low], pane[low], sky, 1 - upper[low])
    colors[:, low] = floor
    return colors


def _paint_windows(
    colors: np.ndarray,
    style: FacadeStyle,
    bay: np.ndarray,
    pixel: np.ndarray,
    at: np.ndarray,
    t: np.ndarray,
    pane: np.ndarray,
    sky: np.ndarray,
    where: np.ndarray,
) -> None:
    """Windows of the upper storeys; ``t`` is the place within the storey, 0..1."""
    wide, tall = style.window
    left, low = (1 - wide) / 2, (1 - tall) / 2
    s, ps, pt = bay - np.floor(bay), pixel / style.bay, (pixel / style.storey)[at]
    across = stripe(s, left - 0.05, 1.05 - left, ps)[at]
    blend(colors, style.frame, where * across * stripe(t, low - 0.03, 1.04 - low, pt))
    across = (stripe(s, left, 1 - left, ps) * (1 - 0.7 * stripe(s, 0.48, 0.52, ps)))[at]
    reflected = np.clip(0.15 + 0.5 * t * pane + 0.25 * (pane > 0.72), 0, 0.85)
    glass = _GLASS + reflected * (sky - _GLASS)
    blend(colors, glass, where * across * stripe(t, low, 1 - low, pt))


def _paint_shops(
    colors: np.ndarray,
    style: FacadeStyle,
    bay: np.ndarray,
    pixel: np.ndarray,
    at: np.ndarray,
    up: np.ndarray,
    pane: np.ndarray,
    sky: np.ndarray,
    where: np.ndarray,
) -> None:
    """Shop windows of two bays each below a coloured sign."""
    size = pixel[at]
    across = stripe(bay / 2 % 1, 0.06, 0.94, pixel / style.bay / 2)[at]
    lit = (0.35 + 0.5 * pane) * _SHOP + np.float32(0.06) * sky
    blend(colors, lit, where * across * stripe(up, 0.5, style.ground - 1.1, size))
    sign = stripe(up, style.ground - 0.95, style.ground - 0.35, size)
    blend(colors, style.sign, 0.9 * sign)


def _paint_entrance(
    colors: np.ndarray,
    style: FacadeStyle,
    bay: np.ndarray,
    pixel: np.ndarray,
    at: np.ndarray,
    up: np.ndarray,
    pane: np.ndarray,
    sky: np.ndarray,
    where: np.ndarray,
) -> None:
    """Windows and doors of a ground floor where people live."""
    size, whole = pixel[at], np.floor(bay)
    s, ps, left = bay - whole, pixel / style.bay, (1 - style.window[0]) / 2
    opening = stripe(s, left, 1 - left, ps)[at] * stripe(up, 1.2, style.ground - 0.9, size)
    blend(colors, 0.9 * style.frame, where * opening)
    inner = stripe(s, left + 0.05, 0.95 - left, ps)[at] * stripe(up, 1.3, style.ground - 1.0, size)
    blend(colors, _GLASS + 0.3 * pane * (sky - _GLASS), where * inner)
    has_door = (style.panes[0, _pane(whole)] > 0.8)[at]
    door = stripe(s, 0.25, 0.75, ps)[at] * stripe(up, 0.0, 2.5, size)
    blend(colors, 0.55 * style.sign, where * door * has_door)
