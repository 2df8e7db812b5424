"""From flat coloured parts to a picture and one outline polygon.

An object is drawn as a list of overlapping parts. `Drawing.render` paints them with smooth edges
and traces the outline of their union; labels are rasterised from that outline, so that picture and
label agree whatever the parts are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from d2_cityscapes.synthetic.street.camera import Light
from d2_cityscapes.synthetic.street.colors import Color

__all__ = [
    "Drawing",
    "Sprite",
    "as_polygon",
    "capsule",
    "ellipse",
    "rasterize",
    "simplify",
    "trace_outline",
    "unit_circle",
]

Points = Sequence[tuple[float, float]] | np.ndarray
Polygon = list[tuple[int, int]]

_SOLID = 100  # coverage (0..255) from which a pixel belongs to an object
_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # clockwise


@functools.cache
def unit_circle(corners: int) -> np.ndarray:
    """(corners, 2) points around the unit circle."""
    angles = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 24) -> np.ndarray:
    """(corners, 2) points around an ellipse."""
    return unit_circle(corners) * (rx, ry) + (x, y)


def capsule(
    p: tuple[float, float], q: tuple[float, float], width_p: float, width_q: float
) -> list[tuple[float, float]]:
    """Outline of a stroke from ``p`` to ``q`` with round ends."""
    heading = math.atan2(q[1] - p[1], q[0] - p[0])
    points = []
    for (x, y), width, start in ((q, width_q, -0.5), (p, width_p, 0.5)):
        for step in range(5):
            angle = heading + math.pi * (start + step / 4)
            points.append((x + width / 2 * math.cos(angle), y + width / 2 * math.sin(angle)))
    return points


def rasterize(polygon: Polygon, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask of an integer polygon, drawn as the official tools do. ``size``: (W, H)."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.asarray(image).astype(bool)


def as_polygon(outline: np.ndarray) -> Polygon:
    """(N, 2) integer points as a polygon of at least 3 corners."""
    polygon = [(int(x), int(y)) for x, y in outline.tolist()]
    return polygon + polygon[-1:] * max(0, 3 - len(polygon))


def trace_outline(mask: np.ndarray) -> np.ndarray:
    """(N, 2) pixels (x, y) around the largest connected part of an (H, W) bool mask, clockwise.

    Diagonal neighbours are connected; holes are ignored. N = 0 for an empty mask.
    """
    height, width = mask.shape
    remaining = mask
    best, best_area = np.zeros((0, 2), dtype=np.int64), 0
    while (left := int(remaining.sum())) > best_area:
        outline = _trace_topmost(remaining)
        inside = rasterize(as_polygon(outline), (width, height))
        area = int((inside & remaining).sum())
        if area > best_area:
            best, best_area = outline, area
        if area * 2 >= left:
            break
        remaining = remaining & ~inside
    return best


def _trace_topmost(mask: np.ndarray) -> np.ndarray:
    """Moore tracing of the part that holds the first pixel in reading order.

    No part lies above or left of that pixel, so it is on an outer rim, never on that of a hole.
    """
    height, width = mask.shape
    stride = width + 2
    padded = np.zeros((height + 2, stride), dtype=np.uint8)
    padded[1:-1, 1:-1] = mask
    cells = padded.tobytes()
    offsets = [dx + dy * stride for dx, dy in _STEPS]
    start = cells.index(1)
    position, search, first, found = start, 0, -1, []
    while True:
        for turn in range(8):
            step = (search + turn) & 7
            if cells[position + offsets[step]]:
                break
        else:
            found.append(position)
            break
        if position == start:
            if step == first:
                break
            if first < 0:
                first = step
        found.append(position)
        position += offsets[step]
        search = (step + 6 - (step & 1)) & 7
    flat = np.array(found)
    return np.stack([flat % stride - 1, flat // stride - 1], axis=1)


def simplify(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """Closed (N, 2) outline with fewer points, off by at most ``tolerance`` px: Douglas-Peucker."""
    n = len(outline)
    if n <= 4:
        return outline
    points = np.concatenate([outline, outline[:1]]).astype(np.float64)
    keep = np.zeros(n + 1, dtype=bool)
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    keep[[0, far, n]] = True
    pending = [(0, far), (far, n)]
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        (ax, ay), (bx, by) = points[a], points[b]
        between = points[a + 1 : b]
        length = math.hypot(bx - ax, by - ay)
        if length > 0:
            away = (
                np.abs((between[:, 0] - ax) * (by - ay) - (between[:, 1] - ay) * (bx - ax)) / length
            )
        else:
            away = np.hypot(between[:, 0] - ax, between[:, 1] - ay)
        worst = int(np.argmax(away))
        if away[worst] > tolerance:
            middle = a + 1 + worst
            keep[middle] = True
            pending += [(a, middle), (middle, b)]
    return points[:-1][keep[:-1]].astype(outline.dtype)


@dataclass(frozen=True)
class Sprite:
    """A painted object.

    Attributes:
        x, y: upper left corner in the picture, px.
        rgb: (h, w, 3) float32, 0..255.
        cover: (h, w) float32, 0..1: how much of each pixel the object hides.
        polygon: integer outline in picture coordinates, inside the frame.
    """

    x: int
    y: int
    rgb: np.ndarray
    cover: np.ndarray
    polygon: Polygon


class Drawing:
    """A list of flat coloured parts in picture coordinates (px), painted in order."""

    def __init__(self, base: Color, *, relief: float = 0.0, grain: float = 0.0) -> None:
        """``base`` shows where parts leave gaps inside the outline; ``relief`` (0..1) rounds the
        whole object by shading, ``grain`` (0..1) is the contrast of its surface texture."""
        self.base = base
        self.relief = relief
        self.grain = grain
        self.parts: list[tuple[np.ndarray, tuple[int, int, int, int]]] = []

    def add(self, points: Points, color: Sequence[float], alpha: int = 255) -> None:
        """Append a filled polygon; ``alpha`` below 255 lets the background show through."""
        flat = np.asarray(points, dtype=np.float64)
        if len(flat) >= 3:
            r, g, b = (min(255, max(0, int(c))) for c in color)
            self.parts.append((flat, (r, g, b, alpha)))

    def extend(self, other: Drawing) -> None:
        self.parts += other.parts

    def render(
        self, frame: tuple[int, int], light: Light, z: float, texture: np.ndarray
    ) -> Sprite | None:
        """Paint into a crop of the (W, H) frame; None where nothing of it can be seen.

        Args:
            light: for the shading of `relief`, and the haze at depth ``z`` (m).
            texture: (T, T) float32 noise around 0, for `grain`.
        """
        if not self.parts:
            return None
        points = np.concatenate([p for p, _ in self.parts])
        lower, upper = points.min(axis=0), points.max(axis=0)
        x0, y0 = (max(0, math.floor(c) - 1) for c in lower)
        x1, y1 = (min(limit, math.ceil(c) + 2) for c, limit in zip(upper, frame, strict=True))
        width, height = x1 - x0, y1 - y0
        if width <= 0 or height <= 0:
            return None
        fine = min(5, max(2, math.ceil(120 / max(width, height))))
        image = Image.new("RGBA", (width * fine, height * fine), (*map(int, self.base), 0))
        draw = ImageDraw.Draw(image)
        shifted = np.rint((points - (x0, y0)) * fine).clip(-30000, 30000).ravel().tolist()
        at = 0
        for part, color in self.parts:
            draw.polygon(shifted[at : at + 2 * len(part)], fill=color)
            at += 2 * len(part)
        alpha = image.getchannel("A").reduce(fine)
        outline = trace_outline(np.asarray(alpha) >= _SOLID)
        if len(outline) == 0:
            return None
        tolerance = 0.6 if max(width, height) < 200 else 0.9
        polygon = as_polygon(simplify(outline, tolerance) + np.array((x0, y0)))
        rgb = np.asarray(image.convert("RGB").reduce(fine)).astype(np.float32)
        rgb *= self._shading(alpha, light, texture)[..., None]
        share = np.float32(light.haze_share(z))
        rgb += share * (np.array(light.haze, dtype=np.float32) - rgb)
        return Sprite(x0, y0, rgb, np.asarray(alpha).astype(np.float32) / 255, polygon)

    def _shading(self, alpha: Image.Image, light: Light, texture: np.ndarray) -> np.ndarray:
        """(h, w) factors: rim darker than the middle, sunny side brighter, plus surface texture."""
        width, height = alpha.size
        shade = np.ones((height, width), dtype=np.float32)
        if self.relief > 0:
            radius = max(1.0, min(width, height) / 7)
            soft = np.asarray(alpha.filter(ImageFilter.BoxBlur(radius))).astype(np.float32) / 255
            slope = np.zeros_like(soft)
            slope[:, 1:-1] = (soft[:, 2:] - soft[:, :-2]) * radius
            sideways = -light.sun[0] * (0.3 + 0.7 * light.strength)
            shade += self.relief * (0.35 * (soft - 0.8) + 0.45 * sideways * slope)
            shade *= np.linspace(1 + 0.1 * self.relief, 1 - 0.1 * self.relief, height)[:, None]
        if self.grain > 0:
            size = len(texture)
            rows, columns = np.arange(height) % size, np.arange(width) % size
            shade *= 1 + self.grain * texture[rows[:, None], columns]
        return shade.astype(np.float32)
