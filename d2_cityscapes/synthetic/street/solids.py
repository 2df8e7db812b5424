"""Solids of flat faces in metres, such as vehicles, painted as the camera sees them from any side.

Local coordinates: `along` the heading, `across` (to its right), `up` from the ground; the middle of
the footprint stands at world (x, z). ``yaw`` 0 heads away from the camera, pi towards it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from d2_cityscapes.synthetic.street.camera import NEAR, Camera, Light, convex_hull
from d2_cityscapes.synthetic.street.colors import Color, mix
from d2_cityscapes.synthetic.street.sprites import Drawing, unit_circle

__all__ = ["LAMP", "PLATE", "RED", "Face", "Flat", "Model", "Solid", "box", "paint_model"]

Point = tuple[float, float, float]  # along, across, up (m)
Flat = tuple[float, float]  # along, up (m)

RED, LAMP, PLATE = (206, 34, 34), (250, 248, 232), (228, 228, 222)
_TYRE, _RIM, _HUB = (26, 26, 28), (150, 152, 156), (92, 94, 98)


@dataclass
class Face:
    """A flat face and the marks on it, which are painted after it wherever it is seen."""

    points: list[Point]
    color: Color
    marks: list[tuple[list[Point], Color]] = field(default_factory=list)

    def mark(
        self, left: float, right: float, start: float, end: float, color: Color
    ) -> list[Point]:
        """Put a mark on a strip of a `Solid`; returns its corners.

        ``left`` and ``right`` are shares (0..1) of the width, ``start`` and ``end`` of the way from
        the strip's first edge of the profile to its second.
        """
        a, b, c, d = self.points

        def at(s: float, t: float) -> Point:
            return (
                (1 - t) * ((1 - s) * a[0] + s * b[0]) + t * ((1 - s) * d[0] + s * c[0]),
                (1 - t) * ((1 - s) * a[1] + s * b[1]) + t * ((1 - s) * d[1] + s * c[1]),
                (1 - t) * ((1 - s) * a[2] + s * b[2]) + t * ((1 - s) * d[2] + s * c[2]),
            )

        corners = [at(left, start), at(right, start), at(right, end), at(left, end)]
        self.marks.append((corners, color))
        return corners


class Solid:
    """A side view drawn out to a width.

    Attributes:
        center: a point inside.
        sides: the left and the right face.
        strips: `strips[i]` spans corners i and i + 1 of the profile.
    """

    def __init__(
        self,
        profile: Sequence[Flat],
        width: float,
        color: Color,
        taper: Callable[[float], float] = lambda up: 1.0,
    ) -> None:
        """``profile`` runs clockwise from the lower rear corner; ``taper`` is the share of the
        width that is left at a height."""
        self._half = lambda up: width / 2 * taper(up)

        def corner(p: Flat, side: int) -> Point:
            return p[0], side * self._half(p[1]), p[1]

        self.sides = [Face([corner(p, side) for p in profile], color) for side in (-1, 1)]
        following = [*profile[1:], profile[0]]
        self.strips = [
            Face([corner(p, -1), corner(p, 1), corner(q, 1), corner(q, -1)], color)
            for p, q in zip(profile, following, strict=True)
        ]
        count = len(profile)
        self.center = (sum(p[0] for p in profile) / count, 0.0, sum(p[1] for p in profile) / count)

    def on_sides(self, flat: Sequence[Flat], color: Color, *, only: int | None = None) -> None:
        """Put the same mark on both sides, or on one (``only`` 0 left, 1 right)."""
        for index in (0, 1) if only is None else (only,):
            sign = 2 * index - 1
            corners = [(along, sign * (self._half(up) + 0.005), up) for along, up in flat]
            self.sides[index].marks.append((corners, color))

    def panel(self, rear: float, front: float, low: float, high: float, color: Color) -> None:
        """An upright rectangle on both sides."""
        self.on_sides(box(rear, front, low, high), color)


@dataclass
class Model:
    """A vehicle: solids, wheels and size in metres.

    Attributes:
        color: main colour.
        wheels: (along, radius) of each pair.
        plate: corners of the rear number plate, one of the marks; empty where it has none.
    """

    length: float
    width: float
    height: float
    color: Color
    solids: list[Solid]
    wheels: list[tuple[float, float]] = field(default_factory=list)
    plate: list[Point] = field(default_factory=list)


def box(rear: float, front: float, low: float, high: float) -> list[Flat]:
    """Profile of a rectangle."""
    return [(rear, low), (rear, high), (front, high), (front, low)]


class _Pose:
    """Turns local points into world points."""

    def __init__(self, camera: Camera, x: float, z: float, yaw: float) -> None:
        sin, cos = math.sin(yaw), math.cos(yaw)
        self.turn = np.array([[sin, 0.0, cos], [cos, 0.0, -sin], [0.0, 1.0, 0.0]])
        self.origin = np.array([x, 0.0, z])
        self.eye = np.array([0.0, camera.elevation, 0.0])

    def world(self, points: Sequence[Point] | np.ndarray) -> np.ndarray:
        return np.asarray(points) @ self.turn + self.origin

    def distance(self, point: Point) -> float:
        away = self.world([point])[0] - self.eye
        return float(away @ away)


def paint_model(
    model: Model, camera: Camera, light: Light, x: float, z: float, yaw: float
) -> tuple[Drawing, np.ndarray]:
    """Draw a vehicle at (x, z).

    Also returns the outline (M, 2) px of its rear number plate, M = 0 where it cannot be seen.
    """
    drawing = Drawing(mix(model.color, (20, 20, 20), 0.5), relief=0.18, grain=0.02)
    pose = _Pose(camera, x, z, yaw)
    plate = np.zeros((0, 2))
    _paint_wheels(drawing, model, camera, pose, near=False)
    chassis = [s for s in model.solids if s.center[2] < 0.75]  # first: the rest stands on it
    bodies = [s for s in model.solids if s.center[2] >= 0.75]
    for solid in chassis + sorted(bodies, key=lambda s: -pose.distance(s.center)):
        middle = pose.world([solid.center])[0]
        seen: list[tuple[float, int, Face, np.ndarray, np.ndarray]] = []
        for face in solid.sides + solid.strips:
            points = pose.world(face.points)
            normal, heart = _normal(points, middle), points.mean(axis=0)
            away = heart - pose.eye
            if normal is not None and normal @ away < 0:
                seen.append((-float(away @ away), len(seen), face, points, normal))
        for _, _, face, points, normal in sorted(seen):
            bright = light.on_face(normal.tolist())
            drawing.add(camera.outline(points), [c * bright for c in face.color])
            for mark, color in face.marks:
                outline = camera.outline(pose.world(mark))
                factor = 1.0 if color in (RED, LAMP) else bright
                drawing.add(outline, [c * factor for c in color])
                if mark is model.plate:
                    plate = outline
    _paint_wheels(drawing, model, camera, pose, near=True)
    return drawing, plate


def _normal(points: np.ndarray, middle: np.ndarray) -> np.ndarray | None:
    """Mean unit normal of a face, away from the solid's middle; None for a face without area."""
    corners = points - points[0]
    x, y, z = corners.T
    u, v, w = np.concatenate([corners[1:], corners[:1]]).T
    normal = np.array([y @ w - z @ v, z @ u - x @ w, x @ v - y @ u])  # Newell
    length = math.sqrt(float(normal @ normal))
    if length < 1e-9:
        return None
    outward = float(normal @ (points.mean(axis=0) - middle))
    return normal / (length if outward > 0 else -length)


def _paint_wheels(
    drawing: Drawing, model: Model, camera: Camera, pose: _Pose, *, near: bool
) -> None:
    """Before the body all tyres; after it (``near``) once more those on the side that faces us."""
    circle = unit_circle(14)
    for along, radius in model.wheels:
        for side in (-1, 1):
            outer = side * (model.width / 2 - 0.01)
            hub = pose.world([(along, outer, radius)])[0]
            faces_us = float((pose.eye - hub) @ (side * pose.turn[1])) > 0
            if hub[2] - 1.1 * radius < NEAR or (near and not faces_us):
                continue

            def disc(
                across: float, share: float, along: float = along, r: float = radius
            ) -> np.ndarray:
                flat = circle * (r * share) + (along, r)
                points = np.stack([flat[:, 0], np.full(14, across), flat[:, 1]], axis=1)
                return camera.project(pose.world(points))

            tyre = disc(outer, 1.0)
            if near:
                drawing.add(tyre, _TYRE)
                drawing.add(disc(outer, 0.62), _RIM)
                drawing.add(disc(outer, 0.3), _HUB)
            else:
                inner = disc(outer - side * 0.23, 1.0)
                drawing.add(convex_hull(np.concatenate([tyre, inner]).tolist()), _TYRE)
