"""Upright things beside the road: trees, bushes, poles, signs, traffic lights, litter bins.

Each painter takes the foot point (x, z), m, and returns the parts of the thing back to front.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.colors import Color, coin, pick, vary
from d2_cityscapes.synthetic.street.sprites import Drawing, capsule, ellipse, unit_circle

__all__ = ["FURNITURE"]

Parts = list[tuple[str, Drawing]]
Painter = Callable[[Camera, Light, float, float, np.random.Generator], Parts]

_LEAVES: list[Color] = [
    (74, 106, 44), (92, 120, 48), (58, 92, 46), (104, 124, 58), (66, 98, 62), (84, 104, 70),
    (128, 118, 50),
]  # fmt: skip
_POLES: list[Color] = [
    (116, 120, 122), (92, 96, 98), (74, 84, 80), (140, 142, 140), (60, 64, 66)
]  # fmt: skip
_TRUNKS: list[Color] = [(84, 66, 50), (92, 74, 58), (76, 62, 50), (120, 112, 104)]
_BINS: list[Color] = [(70, 86, 74), (120, 122, 118), (150, 84, 40), (58, 62, 70)]
_LOOSE: list[Color] = [(112, 80, 50), (60, 54, 50), (176, 150, 112), (90, 40, 60)]
_RED: Color = (206, 32, 38)
_WHITE: Color = (238, 238, 232)
_BLUE: Color = (32, 84, 176)
_YELLOW: Color = (246, 196, 40)


class _Pen:
    """Draws in metres on the upright plane through a foot point: x to its right, y up."""

    def __init__(self, drawing: Drawing, camera: Camera, light: Light, x: float, z: float) -> None:
        self.drawing = drawing
        self.scale = camera.scale(z)
        self.x = camera.center_x + x * self.scale
        self.y = camera.horizon + camera.elevation * self.scale
        self.brightness = 0.82 + 0.22 * light.strength

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self.x + x * self.scale, self.y - y * self.scale

    def tint(self, color: Color, shade: float = 1.0) -> Color:
        f = self.brightness * shade
        return color[0] * f, color[1] * f, color[2] * f

    def stroke(
        self,
        p: tuple[float, float],
        q: tuple[float, float],
        width_p: float,
        width_q: float,
        color: Color,
    ) -> None:
        ends = width_p * self.scale, width_q * self.scale
        self.drawing.add(capsule(self.at(*p), self.at(*q), *ends), self.tint(color))

    def oval(
        self, x: float, y: float, rx: float, ry: float, color: Color, shade: float = 1.0
    ) -> None:
        center = self.at(x, y)
        points = ellipse(*center, rx * self.scale, ry * self.scale)
        self.drawing.add(points, self.tint(color, shade))

    def box(
        self, x0: float, y0: float, x1: float, y1: float, color: Color, shade: float = 1.0
    ) -> None:
        self.patch([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, shade)

    def patch(self, points: list[tuple[float, float]], color: Color, shade: float = 1.0) -> None:
        self.drawing.add([self.at(x, y) for x, y in points], self.tint(color, shade))

    def at_least(self, width: float, pixels: float) -> float:
        """A width in metres that does not vanish far away."""
        return max(width, pixels / self.scale)


def _paint_leaves(
    pen: _Pen,
    middle: tuple[float, float],
    radii: tuple[float, float],
    color: Color,
    light: Light,
    rng: np.random.Generator,
) -> None:
    """Clumps of leaves filling an ellipse: dark inside and below, bright on the sunny side."""
    count = 90 if pen.scale * radii[1] > 120 else 45
    pen.oval(*middle, 0.82 * radii[0], 0.82 * radii[1], color, 0.62)
    angle, reach = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.uniform(0.02, 1, count))
    x, y = reach * np.cos(angle), reach * np.sin(angle)
    sunny = -1 if light.sun[0] < 0 else 1
    brightness = 0.45 * y + 0.2 * sunny * x * (0.4 + light.strength)
    shade = 0.86 + 0.6 * brightness + rng.uniform(-0.1, 0.1, count)
    tints = np.outer(shade, pen.tint(color)).tolist()
    centers = np.stack([x, -y], axis=1) * (0.86 * pen.scale * np.array(radii)) + pen.at(*middle)
    sizes = rng.uniform(0.13, 0.3, count) * (1.15 - 0.35 * reach)
    clumps = np.outer(sizes, radii)[:, None] * pen.scale * unit_circle(8) + centers[:, None]
    for index in np.argsort(brightness).tolist():
        pen.drawing.add(clumps[index], tints[index])


def tree(camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator) -> Parts:
    """A street tree or a conifer with its trunk."""
    color, trunk, height = pick(rng, _LEAVES), pick(rng, _TRUNKS), rng.uniform(4.5, 11)
    drawing = Drawing((0.6 * color[0], 0.6 * color[1], 0.6 * color[2]), relief=0.35, grain=0.16)
    pen = _Pen(drawing, camera, light, x, z)
    clear = min(2.6, 0.32 * height)
    if rng.random() < 0.15:
        pen.stroke((0, 0), (0, clear), 0.34, 0.26, trunk)
        for step in np.linspace(0, 1, 7).tolist():
            y, half = 1 + step * (height - 1.6), 0.23 * (1 - step) * height + 0.25
            layer = [(-half, y), (half, y), (0, y + 0.3 * height)]
            pen.patch(layer, color, 0.62 + 0.3 * step)
        return [("vegetation", drawing)]
    pen.stroke((0, 0), (0, 0.6 * height), 0.42, 0.22, trunk)
    for side in (-1, 1):
        pen.stroke((0, 0.9 * clear), (side * 0.16 * height, 0.62 * height), 0.2, 0.1, trunk)
    middle = rng.uniform(-0.2, 0.2), 0.5 * (clear + height)
    radii = rng.uniform(0.24, 0.38) * height, 0.51 * (height - clear)
    _paint_leaves(pen, middle, radii, color, light, rng)
    return [("vegetation", drawing)]


def bush(camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator) -> Parts:
    """A shrub or a piece of hedge."""
    color, height, half = pick(rng, _LEAVES), rng.uniform(0.8, 1.9), rng.uniform(0.7, 2.4)
    drawing = Drawing((0.6 * color[0], 0.6 * color[1], 0.6 * color[2]), relief=0.35, grain=0.18)
    pen = _Pen(drawing, camera, light, x, z)
    pen.box(-0.75 * half, 0, 0.75 * half, 0.5 * height, color, 0.6)
    _paint_leaves(pen, (0, 0.52 * height), (half, 0.5 * height), color, light, rng)
    return [("vegetation", drawing)]


def _pole(
    camera: Camera, light: Light, x: float, z: float, height: float, width: float, color: Color
) -> _Pen:
    pen = _Pen(Drawing(color, relief=0.3), camera, light, x, z)
    half = pen.at_least(width, 1.6) / 2
    pen.box(-half, 0, half, height, color)
    pen.box(-half, 0, -half / 4, height, color, 0.8)
    return pen


def lamp_post(camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator) -> Parts:
    """A street lamp with an arm over the road."""
    color, height = pick(rng, _POLES), rng.uniform(5.5, 8.5)
    pen = _pole(camera, light, x, z, height, 0.17, color)
    reach = rng.uniform(0.9, 2.0) * (-1 if x > 0 else 1)
    thick = pen.at_least(0.1, 1.4)
    pen.stroke((0, height), (reach, height + 0.25), thick, thick, color)
    pen.stroke((reach, height + 0.25), (1.35 * reach, height + 0.25), 0.24, 0.2, (70, 72, 74))
    return [("pole", pen.drawing)]


def traffic_light(
    camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator
) -> Parts:
    """A post with a signal head, sometimes a second one on an arm over the road."""
    color, arm = pick(rng, _POLES), rng.random() < 0.35
    height = 5.6 if arm else 3.5
    post = _pole(camera, light, x, z, height, 0.14, color)
    heads = [(0.0, 2.75)]
    if arm:
        reach = rng.uniform(1.8, 3.4) * (-1 if x > 0 else 1)
        thick = post.at_least(0.11, 1.4)
        post.stroke((0, height - 0.1), (reach, height), thick, thick, color)
        heads.append((reach, height - 0.45))
    parts = [("pole", post.drawing)]
    lit = int(rng.integers(3))
    lamps = (
        ((255, 58, 44), (96, 34, 32)),
        ((255, 196, 60), (104, 82, 36)),
        ((70, 240, 130), (34, 84, 56)),
    )
    for head_x, head_y in heads:
        pen = _Pen(Drawing((28, 30, 30)), camera, light, x, z)
        pen.box(head_x - 0.18, head_y - 0.5, head_x + 0.18, head_y + 0.52, (30, 33, 32))
        pen.box(head_x - 0.13, head_y - 0.46, head_x + 0.13, head_y + 0.48, (44, 48, 46))
        for index, (on, off) in enumerate(lamps):
            y = head_y + 0.31 - 0.31 * index
            pen.oval(head_x, y, 0.115, 0.115, on if index == lit else off, 1.15)
        parts.append(("traffic light", pen.drawing))
    return parts


def traffic_sign(
    camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator
) -> Parts:
    """A sign on a thin post: round, triangular, square, octagonal or a lozenge."""
    height, r, kind = rng.uniform(2.2, 2.9), rng.uniform(0.3, 0.4), int(rng.integers(6))
    post = _pole(camera, light, x, z, height, 0.08, (140, 142, 144))
    pen, y = _Pen(Drawing(_RED), camera, light, x, z), height - 0.15

    def ring(share: float, corners: int, color: Color, turn: float = 0.0) -> None:
        angles = [turn + k * 2 * math.pi / corners for k in range(corners)]
        points = [(r * share * math.cos(a), y + r * share * math.sin(a)) for a in angles]
        pen.patch(points, color, 1.05)

    def bar(half_x: float, low: float, high: float, color: Color) -> None:
        pen.box(-half_x * r, y + low * r, half_x * r, y + high * r, color)

    if kind == 0:
        ring(1.0, 18, _RED)
        ring(0.74, 18, _WHITE)
        bar(0.4, -0.12, 0.12, (40, 40, 42))
    elif kind == 1:
        ring(1.15, 3, _RED, math.pi / 2)
        ring(0.7, 3, _WHITE, math.pi / 2)
    elif kind == 2:
        bar(0.9, -0.9, 0.9, _BLUE)
        bar(0.3, -0.6, 0.55, _WHITE)
    elif kind == 3:
        ring(1.0, 8, _RED, math.pi / 8)
        bar(0.65, -0.2, 0.2, _WHITE)
    elif kind == 4:
        ring(1.1, 4, _WHITE)
        ring(0.82, 4, _YELLOW)
    else:
        ring(1.0, 18, _BLUE)
        pen.stroke((0, y - 0.5 * r), (0, y + 0.3 * r), 0.24 * r, 0.24 * r, _WHITE)
        for side in (-0.35, 0.35):
            pen.stroke((0, y + 0.5 * r), (side * r, y + 0.05 * r), 0.2 * r, 0.2 * r, _WHITE)
    return [("pole", post.drawing), ("traffic sign", pen.drawing)]


def fixed_thing(
    camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator
) -> Parts:
    """Something without a class that never moves: a litter bin, a cabinet or a bollard."""
    color = vary(rng, _BINS)
    pen = _Pen(Drawing(color, relief=0.4, grain=0.06), camera, light, x, z)
    half, height = pick(rng, [(0.22, 0.8), (0.5, 1.1), (0.09, 0.95)])
    pen.box(-half, 0, half, height, color)
    pen.box(-1.08 * half, 0.86 * height, 1.08 * half, height, color, 0.75)
    pen.box(-0.7 * half, 0.55 * height, 0.7 * half, 0.7 * height, color, 1.2)
    return [("static", pen.drawing)]


def loose_thing(
    camera: Camera, light: Light, x: float, z: float, rng: np.random.Generator
) -> Parts:
    """Something without a class that moves: a dog or a pushchair."""
    color, ahead = vary(rng, _LOOSE), coin(rng)
    pen = _Pen(Drawing(color, relief=0.5, grain=0.06), camera, light, x, z)

    def stroke(x0: float, y0: float, x1: float, y1: float, w0: float, w1: float, c: Color) -> None:
        pen.stroke((ahead * x0, y0), (ahead * x1, y1), w0, w1, c)

    if rng.random() < 0.5:
        for leg in (-0.3, -0.2, 0.2, 0.3):
            stroke(leg, 0.0, 0.9 * leg, 0.35, 0.07, 0.1, color)
        stroke(-0.3, 0.45, 0.28, 0.47, 0.26, 0.28, color)
        stroke(0.3, 0.52, 0.5, 0.68, 0.18, 0.17, color)
        stroke(-0.34, 0.52, -0.55, 0.7, 0.06, 0.04, color)
    else:
        for wheel in (-0.28, 0.28):
            pen.oval(wheel, 0.12, 0.12, 0.12, (36, 36, 38))
        stroke(-0.28, 0.15, 0.3, 0.6, 0.06, 0.06, (90, 90, 94))
        stroke(-0.15, 0.6, 0.2, 0.62, 0.42, 0.36, color)
        stroke(0.2, 0.6, 0.52, 0.98, 0.05, 0.05, (60, 60, 62))
    return [("dynamic", pen.drawing)]


FURNITURE: dict[str, Painter] = {
    "tree": tree,
    "bush": bush,
    "lamp": lamp_post,
    "traffic light": traffic_light,
    "traffic sign": traffic_sign,
    "static": fixed_thing,
    "dynamic": loose_thing,
}
