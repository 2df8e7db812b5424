"""What stands beside and behind a street: houses, walls, fences, woods; and the sky above."""

from __future__ import annotations

import numpy as np

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.canvas import Canvas, Paint
from d2_cityscapes.synthetic.street.colors import Color, column, pick
from d2_cityscapes.synthetic.street.facades import FacadeStyle, facade
from d2_cityscapes.synthetic.street.furniture import FURNITURE
from d2_cityscapes.synthetic.street.street import Plot, Street
from d2_cityscapes.synthetic.street.textures import (
    TILE,
    boards,
    cloudy_sky,
    masonry,
    noise,
)

__all__ = ["add_backdrop", "add_plots", "add_sky"]

_BACKDROP = 230.0  # m
_WALLS: list[Color] = [(150, 96, 78), (168, 164, 156), (190, 180, 164), (134, 128, 122)]
_FENCES: list[Color] = [(120, 94, 66), (70, 76, 78), (150, 152, 152), (88, 110, 84)]
_LEAVES: Color = (92, 112, 78)


def add_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Sky down to a little below the horizon."""
    width, height = canvas.size
    rows = min(height, int(canvas.camera.horizon) + 1 + height // 60)
    cloudiness = float(np.clip(1 - canvas.light.strength + rng.uniform(-0.35, 0.35), 0, 1))
    sky = cloudy_sky(canvas.camera, canvas.light, rows, cloudiness, rng)
    corners = np.array([(0, 0), (width - 1, 0), (width - 1, rows - 1), (0, rows - 1)])
    canvas.add_surface("sky", corners, sky)


def add_backdrop(canvas: Canvas, rng: np.random.Generator) -> None:
    """Woods and houses where the street ends."""
    xs = np.linspace(-140, 140, 57)
    tops = 7 + 5 * noise(rng, 1, 57, (1, 9))[0] + rng.uniform(-1.2, 1.2, 57)
    rim = [(x, max(2.0, top), _BACKDROP) for x, top in zip(xs, tops, strict=True)]
    rim += [(140.0, -3.0, _BACKDROP), (-140.0, -3.0, _BACKDROP)]
    leaves = np.array([_LEAVES]).T * rng.uniform(0.8, 1.1)
    woods = _plain(canvas, leaves, _BACKDROP, contrast=0.18)
    canvas.add_surface("vegetation", canvas.camera.outline(rim), woods)
    for _ in range(int(rng.integers(3, 9))):
        z, x0, top = rng.uniform(150, 220), rng.uniform(-70, 70), rng.uniform(7, 22)
        x1 = x0 + rng.uniform(10, 30)
        corners = [(x0, -0.2, z), (x0, top, z), (x1, top, z), (x1, -0.2, z)]
        front = _wall(canvas, FacadeStyle(rng), across=z)
        canvas.add_surface("building", canvas.camera.outline(corners), front)


def add_plots(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Houses and gardens on both sides."""
    for side in street.sides:
        for plot in side.plots:
            if plot.storeys:
                _add_house(canvas, plot, side.outward, rng)
            else:
                _add_garden(canvas, plot, side.outward, rng)


def _add_house(canvas: Canvas, plot: Plot, outward: int, rng: np.random.Generator) -> None:
    style, depth, camera = FacadeStyle(rng), rng.uniform(9, 14), canvas.camera
    x, z0, z1 = plot.x, plot.z0, plot.z1
    top = style.ground + style.storey * plot.storeys + 0.5
    back = x + outward * depth
    if rng.random() < 0.6:
        ridge, middle = top + rng.uniform(1.5, 4), x + outward * depth / 2
        slope = [(x, top, z0), (x, top, z1), (middle, ridge, z1), (middle, ridge, z0)]
        shine = canvas.light.on_face((-0.5 * outward, 0.86, 0.0))
        roof = _plain(canvas, style.roof * shine, z0, contrast=0.07, courses=True)
        canvas.add_surface("building", camera.outline(slope), roof)
        shine = 0.9 * canvas.light.on_face((0.0, 0.0, -1.0))
        gable = [(x, top, z0), (middle, ridge, z0), (back, top, z0)]
        wall = _plain(canvas, style.wall * shine, z0, contrast=0.05)
        canvas.add_surface("building", camera.outline(gable), wall)
    end = [(x, -0.2, z0), (x, top, z0), (back, top, z0), (back, -0.2, z0)]
    canvas.add_surface("building", camera.outline(end), _wall(canvas, style, across=z0))
    front = [(x, -0.1, z0), (x, top, z0), (x, top, z1), (x, -0.1, z1)]
    canvas.add_surface("building", camera.outline(front), _wall(canvas, style, along=x))


def _add_garden(canvas: Canvas, plot: Plot, outward: int, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        z, x = rng.uniform(max(plot.z0, 6), max(plot.z1, 7)), plot.x + outward * rng.uniform(2, 8)
        kind = "tree" if rng.random() < 0.7 else "bush"
        for label, drawing in FURNITURE[kind](canvas.camera, canvas.light, x, z, rng):
            canvas.add_drawing(label, drawing, z)
    label = str(rng.choice(["wall", "fence", ""], p=[0.35, 0.45, 0.2]))
    if label and plot.z1 > 3:
        top = rng.uniform(1.5, 2.6) if label == "wall" else rng.uniform(1.0, 1.8)
        color = pick(rng, _WALLS if label == "wall" else _FENCES)
        x, z0, z1 = plot.x, plot.z0, plot.z1
        corners = [(x, -0.1, z0), (x, top, z0), (x, top, z1), (x, -0.1, z1)]
        paint = _barrier(canvas, label, x, top, color)
        canvas.add_surface(label, canvas.camera.outline(corners), paint)


def _columns(camera: Camera, x: np.ndarray) -> np.ndarray:
    """(C,) float32 px of columns right of the vanishing point."""
    return x.astype(np.float32) + 0.5 - camera.center_x


def _depths(camera: Camera, plane: float, x: np.ndarray) -> np.ndarray:
    """(C,) depth at which picture columns meet the upright plane at ``plane`` along the street."""
    columns = _columns(camera, x)
    aside = np.where(columns * plane > 0, columns, np.sign(plane) * 0.5)
    return np.clip(plane * camera.focal / aside, 0.5, 400).astype(np.float32)


def _heights(camera: Camera, pixel: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(N,) metres above the ground on an upright plane; ``pixel`` (N,): a pixel's size there."""
    return camera.elevation + (camera.horizon - (y.astype(np.float32) + 0.5)) * pixel


def _fade(light: Light, rgb: np.ndarray, depth: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Add the haze of columns at (C,) depths to (3, N) colours; ``at`` (N,) is their column."""
    share = (1 - np.exp(-depth / light.visibility)).astype(np.float32)[at]
    return rgb + share * (column(light.haze) - rgb)


def _wall(
    canvas: Canvas, style: FacadeStyle, *, along: float | None = None, across: float = 0.0
) -> Paint:
    """Paint of a house front ``along`` the street at that x, or ``across`` it at that depth."""
    camera, light, smooth = canvas.camera, canvas.light, canvas.smooth
    normal = (0.0, 0.0, -1.0) if along is None else (-float(np.sign(along)), 0.0, 0.0)
    bright = np.float32(light.on_face(normal))

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        first = int(x.min())
        columns, at = np.arange(first, int(x.max()) + 1), x - first
        if along is not None:
            depth = place = _depths(camera, along, columns)
        else:
            aside = _columns(camera, columns)
            depth, place = np.full_like(aside, across), aside * across / camera.focal
        pixel = depth / np.float32(camera.focal)
        up = _heights(camera, pixel[at], y)
        rgb = facade(style, place, pixel, at, up, light, smooth) * bright
        return _fade(light, rgb, depth, at)

    return paint


def _barrier(canvas: Canvas, label: str, plane: float, top: float, color: Color) -> Paint:
    """Paint of a garden wall or fence along the street at x = ``plane``."""
    camera, light, smooth = canvas.camera, canvas.light, canvas.smooth
    normal = (-float(np.sign(plane)), 0.0, 0.0)
    tint = column(color) * light.on_face(normal)
    texture = masonry if label == "wall" else boards

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        first = int(x.min())
        depth, at = _depths(camera, plane, np.arange(first, int(x.max()) + 1)), x - first
        pixel = (depth / np.float32(camera.focal))[at]
        factor = texture(depth[at], _heights(camera, pixel, y), pixel, top, smooth)
        return _fade(light, (factor * tint).astype(np.float32), depth, at)

    return paint


def _plain(
    canvas: Canvas, color: np.ndarray, z: float, *, contrast: float, courses: bool = False
) -> Paint:
    """Paint of one ``color`` (3, 1) with some texture, at depth ``z``; ``courses`` for roofs."""
    share = np.float32(canvas.light.haze_share(z))
    haze = column(canvas.light.haze)
    grain, thick = canvas.grain, max(1, canvas.camera.height // 180)

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        factor = 1 + contrast * grain[y % TILE, x % TILE]
        if courses:
            factor -= 0.06 * ((y // thick) % 2)
        rgb = (factor * color).astype(np.float32)
        return rgb + share * (haze - rgb)

    return paint
