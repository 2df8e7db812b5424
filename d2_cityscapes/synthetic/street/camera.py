"""Camera and daylight of a made-up street scene.

World coordinates are metres: x to the right, y up from the ground, z forward from the camera.
Picture coordinates are pixels (x to the right, y down).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d2_cityscapes.synthetic.street.colors import Color

__all__ = ["NEAR", "Camera", "Light", "convex_hull"]

NEAR = 0.7  # metres: what lies nearer to the camera is cut off


def convex_hull(points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
    """Corners of the convex hull of points in the plane, in order around it."""
    ordered = sorted({(float(x), float(y)) for x, y in points})
    hull: list[tuple[float, float]] = []
    for sweep in (ordered, ordered[::-1]):
        half = sweep[:2]
        for point in sweep[2:]:
            x, y = point
            while len(half) >= 2:
                ax, ay = half[-2]
                bx, by = half[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                half.pop()
            half.append(point)
        hull += half[:-1]
    return hull


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera.

    Attributes:
        height, width: size of the picture, px.
        focal: focal length, px.
        center_x, horizon: column and row of the vanishing point, px.
        elevation: height of the camera above the ground, m.
    """

    height: int
    width: int
    focal: float
    center_x: float
    horizon: float
    elevation: float

    def project(self, points: Iterable[Sequence[float]]) -> list[tuple[float, float]]:
        """(x, y, z) metres, all of them beyond `NEAR`, -> (x, y) px."""
        focal, center_x, horizon, elevation = (
            self.focal, self.center_x, self.horizon, self.elevation
        )  # fmt: skip
        return [
            (center_x + x * (scale := focal / z), horizon + (elevation - y) * scale)
            for x, y, z in points
        ]

    def outline(self, points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """Picture (x, y) of a flat polygon in metres; empty where it lies behind `NEAR`."""
        for point in points:
            if point[2] < NEAR:
                break
        else:
            return self.project(points)
        kept: list[Sequence[float]] = []
        for a, b in zip(points, [*points[1:], points[0]], strict=True):
            if a[2] >= NEAR:
                kept.append(a)
            if (a[2] >= NEAR) != (b[2] >= NEAR):
                kept.append(
                    [p + (q - p) * (NEAR - a[2]) / (b[2] - a[2]) for p, q in zip(a, b, strict=True)]
                )
        return self.project(kept)

    def scale(self, z: float) -> float:
        """Pixels per metre at depth ``z``."""
        return self.focal / max(z, NEAR)

    @property
    def nearest_ground(self) -> float:
        """Depth (m) at which the ground meets the lower edge of the picture."""
        return self.focal * self.elevation / (self.height - self.horizon)


@dataclass(frozen=True)
class Light:
    """Daylight.

    Attributes:
        sun: unit vector towards the sun.
        strength: 0 (overcast) .. 1 (clear).
        haze: colour that far things fade to.
        visibility: depth (m) at which about two thirds of a thing's colour are gone.
        zenith: colour of the sky straight above.
    """

    sun: tuple[float, float, float]
    strength: float
    haze: Color
    visibility: float
    zenith: Color

    def on_face(self, normal: Sequence[float]) -> float:
        """Brightness (about 0.5..1.15) of a flat face with the given unit normal."""
        (x, y, z), (sun_x, sun_y, sun_z) = normal, self.sun
        lit = x * sun_x + y * sun_y + z * sun_z
        ambient = 0.74 + 0.12 * normal[1] - 0.12 * self.strength
        return ambient + (0.14 + 0.42 * self.strength) * max(0.0, lit)

    def haze_share(self, z: float) -> float:
        """Share 0..1 of haze in the colour of something at depth ``z`` (m)."""
        return 1 - math.exp(-z / self.visibility)
