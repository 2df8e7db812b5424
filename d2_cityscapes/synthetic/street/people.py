"""Figures of strokes on an upright plane, in metres, and pedestrians made of them.

Local coordinates of a figure: `along` its heading, `across` (to its right) and `up` from the
ground. Figures are flat: their depth does not change their size. ``yaw`` 0 heads away from us.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.colors import Color, coin, vary
from d2_cityscapes.synthetic.street.sprites import Drawing, capsule, ellipse

__all__ = [
    "CLOTHES",
    "PAINT",
    "SKIN",
    "TROUSERS",
    "Figure",
    "Place",
    "Point",
    "paint_head",
    "person",
]

SKIN: list[Color] = [
    (236, 197, 168), (224, 178, 146), (196, 146, 112), (141, 96, 68), (96, 64, 46)
]  # fmt: skip
_HAIR: list[Color] = [
    (40, 30, 24), (70, 48, 32), (112, 78, 46), (190, 156, 100), (150, 150, 148), (24, 22, 22)
]  # fmt: skip
CLOTHES: list[Color] = [
    (38, 42, 54), (58, 74, 112), (146, 42, 46), (198, 192, 182), (92, 104, 84), (66, 62, 66),
    (150, 118, 78), (36, 92, 122), (120, 60, 98), (30, 32, 36), (96, 138, 170), (168, 60, 88),
    (60, 112, 74),
]  # fmt: skip
TROUSERS: list[Color] = [
    (36, 40, 52), (52, 66, 96), (28, 28, 30), (84, 80, 74), (132, 118, 96), (70, 84, 110),
    (44, 40, 38),
]  # fmt: skip
_SHOES: list[Color] = [(30, 28, 28), (88, 62, 42), (214, 214, 212), (52, 54, 60)]
PAINT: list[Color] = [
    (176, 36, 40), (40, 80, 156), (24, 24, 26), (210, 210, 206), (60, 128, 76), (226, 150, 36),
    (92, 160, 190), (128, 128, 132),
]  # fmt: skip

Point = tuple[float, float, float]  # along, across, up (m)
Place = tuple[float, float, float]  # x, z (m), yaw


class Figure:
    """Draws strokes of a figure at a place; widths and radii in metres."""

    def __init__(self, drawing: Drawing, camera: Camera, light: Light, place: Place) -> None:
        x, z, yaw = place
        self.drawing = drawing
        self.scale = camera.scale(z)
        self.foot = camera.center_x + x * self.scale, camera.horizon + camera.elevation * self.scale
        self.along, self.across = math.sin(yaw), math.cos(yaw)
        self.brightness = 0.8 + 0.25 * light.strength

    def at(self, point: Point) -> tuple[float, float]:
        """Picture coordinates (px) of a local point."""
        aside = point[0] * self.along + point[1] * self.across
        return self.foot[0] + aside * self.scale, self.foot[1] - point[2] * self.scale

    def tint(self, color: Color, shade: float = 1.0) -> Color:
        f = self.brightness * shade
        return color[0] * f, color[1] * f, color[2] * f

    def stroke(
        self,
        points: Sequence[Point],
        widths: float | Sequence[float],
        color: Color,
        shade: float = 1.0,
    ) -> None:
        """A chain of strokes with round ends; one width for all points or one for each."""
        at = [self.at(p) for p in points]
        each = [widths] * len(at) if isinstance(widths, float | int) else widths
        tint = self.tint(color, shade)
        for i in range(len(at) - 1):
            ends = each[i] * self.scale, each[i + 1] * self.scale
            self.drawing.add(capsule(at[i], at[i + 1], *ends), tint)

    def oval(
        self,
        center: Point,
        rx: float,
        ry: float,
        color: Color,
        shade: float = 1.0,
        alpha: int = 255,
    ) -> None:
        x, y = self.at(center)
        points = ellipse(x, y, rx * self.scale, ry * self.scale)
        self.drawing.add(points, self.tint(color, shade), alpha)

    def patch(self, points: Sequence[Point], color: Color, shade: float = 1.0) -> None:
        self.drawing.add([self.at(p) for p in points], self.tint(color, shade))


def paint_head(fig: Figure, rng: np.random.Generator, neck: Point, *, helmet: bool) -> None:
    """Neck, face, and hair or a helmet above the top of the spine."""
    skin, hair = vary(rng, SKIN, 6), vary(rng, _HAIR, 6)
    along, across, up = neck
    fig.stroke([neck, (along, across, up + 0.1)], 0.11, skin, 0.85)
    front = along + 0.02
    fig.oval((front, across, up + 0.19), 0.095, 0.125, skin)
    if helmet:
        color = vary(rng, PAINT)
        fig.oval((front - 0.01, across, up + 0.25), 0.125, 0.095, color)
        fig.oval((front - 0.01, across, up + 0.28), 0.06, 0.05, color, 1.25)
        return
    if fig.across > 0.35:  # seen from behind
        fig.oval((front - 0.03, across, up + 0.2), 0.105, 0.13, hair)
    else:
        fig.oval((front - 0.03, across, up + 0.25), 0.105, 0.085, hair)
    if rng.random() < 0.35:  # long hair
        fig.stroke([(front - 0.07, across, up + 0.2), (front - 0.08, across, up)], 0.12, hair)


def person(
    camera: Camera, light: Light, place: Place, rng: np.random.Generator
) -> tuple[Drawing, float]:
    """A walking or standing pedestrian; returns the drawing and the height in metres."""
    child = rng.random() < 0.1
    height = rng.uniform(1.15, 1.45) if child else float(rng.normal(1.73, 0.08))
    k = height / 1.75
    top = vary(rng, CLOTHES)
    drawing = Drawing(top, relief=0.7, grain=0.05)
    fig = Figure(drawing, camera, light, place)
    stride = coin(rng) * (rng.uniform(0.12, 0.34) if rng.random() < 0.75 else 0.03)
    stout = rng.uniform(0.92, 1.2)
    dress = not child and rng.random() < 0.14
    coat = not dress and rng.random() < 0.3
    far = 1 if fig.along > 0 else -1  # the side that is turned away from us

    def p(along: float, across: float, up: float) -> Point:
        return along * k, across * k, up * k

    trousers = SKIN[1] if dress else vary(rng, TROUSERS)
    shoes = vary(rng, _SHOES)
    for side in (far, -far):
        foot, across, shade = stride * side, 0.1 * side, 0.85 if side == far else 1.0
        lifted = 0.06 if foot < -0.15 else 0.0
        chain = [
            p(0, 0.9 * across, 0.9),
            p(0.55 * foot + 0.04, across, 0.5),
            p(foot, across, 0.08 + lifted),
        ]
        fig.stroke(chain, [0.18 * stout * k, 0.135 * k, 0.1 * k], trousers, shade)
        fig.stroke(
            [p(foot - 0.04, across, 0.06), p(foot + 0.15, 1.2 * across, 0.05)],
            0.1 * k,
            shoes,
            shade,
        )

    bend = rng.uniform(0.0, 0.5)
    hands = vary(rng, SKIN, 6)

    def arm(side: int) -> None:
        swing, shade = -0.9 * stride * side, 0.8 if side == far else 0.94
        hand = p(swing + 0.24 * bend, 0.26 * side, 0.88 + 0.2 * bend)
        chain = [p(0, 0.2 * side * stout, 1.4), p(0.5 * swing - 0.04, 0.25 * side, 1.13), hand]
        fig.stroke(chain, [0.13 * k, 0.11 * k, 0.09 * k], top, shade)
        fig.oval(hand, 0.05 * k, 0.055 * k, hands)

    arm(far)
    if rng.random() < 0.25:  # backpack
        fig.stroke([p(-0.17, 0, 1.33), p(-0.18, 0, 1.05)], 0.26 * k, vary(rng, CLOTHES), 0.8)
    half, deep = 0.2 * stout, 0.13 * stout
    wide = math.hypot(half * fig.across, deep * fig.along) * k
    hem = 0.5 if dress else 0.62 if coat else 0.84
    rim = [(0.8, 1.44), (1.05, 1.36), (0.98, 1.12), (0.86, 1.0), (1.0, hem + 0.12)]
    rim.append((1.12 if dress or coat else 0.98, hem))
    x, y = fig.foot
    right = [(x + wide * w * fig.scale, y - up * k * fig.scale) for w, up in rim]
    left = [(2 * x - px, py) for px, py in reversed(right)]
    drawing.add(right + left, fig.tint(top))
    fig.oval(p(0, 0, 1.4), 0.85 * wide, 0.075 * k, top)
    if not (dress or coat):
        fig.stroke([p(0, -0.9 * half, 0.86), p(0, 0.9 * half, 0.86)], 0.05 * k, (40, 34, 30))
    if fig.across < -0.3 and rng.random() < 0.5:  # shirt under an open jacket
        shirt = [p(0, -0.05, 1.44), p(0, 0.05, 1.44), p(0, 0.03, 1.0), p(0, -0.03, 1.0)]
        fig.patch(shirt, vary(rng, CLOTHES))
    arm(-far)
    if rng.random() < 0.22:  # bag in the hand
        corners = ((-0.14, 0.8), (0.14, 0.8), (0.16, 0.5), (-0.16, 0.5))
        fig.patch([p(a, -0.27 * far, up) for a, up in corners], vary(rng, CLOTHES))
    paint_head(fig, rng, p(0, 0, 1.45), helmet=False)
    return drawing, height
