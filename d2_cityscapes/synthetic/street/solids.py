"""Solids of flat faces in metres, such as vehicles, painted as the camera sees them from any side.

Local coordinates: `along` the heading, `across` (to its right), `up` from the ground; the middle of
the footprint stands at world (x, z). ``yaw`` 0 heads away from the camera, pi towards it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from d2_cityscapes.synthetic.street.camera import NEAR, Camera, Light, convex_hull
from d2_cityscapes.synthetic.street.colors import Color, mix
from d2_cityscapes.synthetic.street.sprites import Drawing, unit_circle

__all__ = ["LAMP", "PLATE", "RED", "Face", "Flat", "Model", "Solid", "box", "paint_model"]

Point = tuple[float, float, float]  # along, across, up (m)
Flat = tuple[float, float]  # along, up (m)

RED, LAMP, PLATE = (206, 34, 34), (250, 248, 232), (228, 228, 222)
_TYRE, _RIM, _HUB = (26, 26, 28), (150, 152, 156), (92, 94, 98)
_CIRCLE: list[tuple[float, float]] = unit_circle(14).tolist()


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

        halves = [self._half(up) for _, up in profile]
        left: list[Point] = [(p[0], -half, p[1]) for p, half in zip(profile, halves, strict=True)]
        right: list[Point] = [(p[0], half, p[1]) for p, half in zip(profile, halves, strict=True)]
        self.sides = [Face(left, color), Face(right, color)]
        self.strips = [
            Face([left[i - 1], right[i - 1], right[i], left[i]], color)
            for i in [*range(1, len(profile)), 0]
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
    """Turns local points into world points (x, y, z)."""

    def __init__(self, camera: Camera, x: float, z: float, yaw: float) -> None:
        self.x, self.z = x, z
        self.sin, self.cos = math.sin(yaw), math.cos(yaw)
        self.eye = camera.elevation  # above x = z = 0

    def world(self, points: Iterable[Point]) -> list[Point]:
        sin, cos, x0, z0 = self.sin, self.cos, self.x, self.z
        return [
            (along * sin + across * cos + x0, up, along * cos - across * sin + z0)
            for along, across, up in points
        ]

    def disc(self, hub: Point, radius: float) -> list[Point]:
        """Points around a disc that stands along the heading, seen from the side."""
        along, across, up = hub
        sin, cos = self.sin, self.cos
        aside_x, aside_z, x0, z0 = across * cos, across * sin, self.x, self.z
        return [
            (
                (to := x * radius + along) * sin + aside_x + x0,
                y * radius + up,
                to * cos - aside_z + z0,
            )
            for x, y in _CIRCLE
        ]

    def distance(self, point: Point) -> float:
        """Of a world point from the camera, squared."""
        x, y, z = point
        return x * x + (y - self.eye) ** 2 + z * z


def paint_model(
    model: Model, camera: Camera, light: Light, x: float, z: float, yaw: float
) -> tuple[Drawing, list[tuple[float, float]]]:
    """Draw a vehicle at (x, z).

    Also returns the outline (x, y) px of its rear number plate, empty where it cannot be seen.
    """
    drawing = Drawing(mix(model.color, (20, 20, 20), 0.5), relief=0.18, grain=0.02)
    pose = _Pose(camera, x, z, yaw)
    plate: list[tuple[float, float]] = []
    _paint_wheels(drawing, model, camera, pose, near=False)
    chassis = [s for s in model.solids if s.center[2] < 0.75]  # first: the rest stands on it
    bodies = [s for s in model.solids if s.center[2] >= 0.75]
    bodies.sort(key=lambda s: -pose.distance(*pose.world([s.center])))
    for solid in chassis + bodies:
        (middle,) = pose.world([solid.center])
        seen: list[tuple[float, int, Face, list[Point], Point]] = []
        for face in solid.sides + solid.strips:
            points = pose.world(face.points)
            heart = _mean(points)
            normal = _normal(points, heart, middle)
            if normal is None:
                continue
            if normal[0] * heart[0] + normal[1] * (heart[1] - pose.eye) + normal[2] * heart[2] < 0:
                seen.append((-pose.distance(heart), len(seen), face, points, normal))
        for _, _, face, points, normal in sorted(seen):
            bright = light.on_face(normal)
            drawing.add(camera.outline(points), [c * bright for c in face.color])
            for mark, color in face.marks:
                outline = camera.outline(pose.world(mark))
                factor = 1.0 if color in (RED, LAMP) else bright
                drawing.add(outline, [c * factor for c in color])
                if mark is model.plate:
                    plate = outline
    _paint_wheels(drawing, model, camera, pose, near=True)
    return drawing, plate


def _mean(points: Sequence[Point]) -> Point:
    xs, ys, zs = zip(*points, strict=True)
    return sum(xs) / len(xs), sum(ys) / len(ys), sum(zs) / len(zs)


def _normal(points: Sequence[Point], heart: Point, middle: Point) -> Point | None:
    """Mean unit normal of a face, away from the solid's middle; None for a face without area."""
    x0, y0, z0 = points[0]
    nx = ny = nz = x = y = z = 0.0
    for p in [*points[1:], points[0]]:
        u, v, w = p[0] - x0, p[1] - y0, p[2] - z0
        nx, ny, nz = nx + (y * w - z * v), ny + (z * u - x * w), nz + (x * v - y * u)  # Newell
        x, y, z = u, v, w
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    if length < 1e-9:
        return None
    (hx, hy, hz), (mx, my, mz) = heart, middle
    if nx * (hx - mx) + ny * (hy - my) + nz * (hz - mz) <= 0:
        length = -length
    return nx / length, ny / length, nz / length


def _paint_wheels(
    drawing: Drawing, model: Model, camera: Camera, pose: _Pose, *, near: bool
) -> None:
    """Before the body all tyres; after it (``near``) once more those on the side that faces us."""
    for along, radius in model.wheels:
        for side in (-1, 1):
            outer = side * (model.width / 2 - 0.01)
            (hub,) = pose.world([(along, outer, radius)])
            faces_us = side * (hub[2] * pose.sin - hub[0] * pose.cos) > 0
            if hub[2] - 1.1 * radius < NEAR or (near and not faces_us):
                continue

            def disc(
                across: float, share: float, along: float = along, r: float = radius
            ) -> list[tuple[float, float]]:
                return camera.project(pose.disc((along, across, r), r * share))

            tyre = disc(outer, 1.0)
            if near:
                drawing.add(tyre, _TYRE)
                drawing.add(disc(outer, 0.62), _RIM)
                drawing.add(disc(outer, 0.3), _HUB)
            else:
                drawing.add(convex_hull(tyre + disc(outer - side * 0.23, 1.0)), _TYRE)
