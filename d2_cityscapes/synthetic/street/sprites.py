"""From flat coloured parts to a picture and one outline polygon.

An object is drawn as a list of overlapping parts. `Drawing.render` paints them with smooth edges
and traces the outline of their union; labels are rasterised from that outline, so that picture and
label agree whatever the parts are.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from d2_cityscapes.synthetic.street.camera import Light
from d2_cityscapes.synthetic.street.colors import Color, column

__all__ = [
    "Drawing",
    "Points",
    "Sprite",
    "as_polygon",
    "capsule",
    "ellipse",
    "rasterize",
    "simplify",
    "trace_outline",
    "unit_circle",
]

Points = Sequence[Sequence[float]] | np.ndarray
Polygon = list[tuple[int, int]]

_SOLID = 100  # coverage (0..255) from which a pixel belongs to an object
_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))  # clockwise
# bit k of a pixel's neighbours: _STEPS[k]; [search][neighbours] -> the first of them from search on
_NEXT_STEP = [
    bytes(next((s & 7 for s in range(search, search + 8) if found >> (s & 7) & 1), 8)
          for found in range(256))
    for search in range(8)
]  # fmt: skip
_SEARCH_AFTER = [(step + 6 - (step & 1)) & 7 for step in range(8)]  # where the next search begins
_TURNS = [math.pi * (start + step / 4) for start in (-0.5, 0.5) for step in range(5)]
_FEW = 48  # points: so many are looked at one by one sooner than as an array


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
    cos, sin, points = math.cos, math.sin, []
    for (x, y), radius, turns in ((q, width_q / 2, _TURNS[:5]), (p, width_p / 2, _TURNS[5:])):
        points += [(x + radius * cos(heading + t), y + radius * sin(heading + t)) for t in turns]
    return points


def rasterize(polygon: Polygon, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask of an integer polygon, drawn as the official tools do. ``size``: (W, H)."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon(polygon, fill=1)
    return np.frombuffer(image.tobytes(), dtype=bool).reshape(size[::-1])


def as_polygon(outline: np.ndarray) -> Polygon:
    """(N, 2) integer points as a polygon of at least 3 corners."""
    polygon = [(x, y) for x, y in outline.tolist()]
    return polygon + polygon[-1:] * max(0, 3 - len(polygon))


def trace_outline(mask: np.ndarray) -> np.ndarray:
    """(N, 2) pixels (x, y) around the largest connected part of an (H, W) bool mask, clockwise.

    Diagonal neighbours are connected; holes are ignored. N = 0 for an empty mask.
    """
    height, width = mask.shape
    remaining = mask
    best, best_area = np.zeros((0, 2), dtype=np.int64), 0
    while (left := np.count_nonzero(remaining)) > best_area:
        outline = _trace_topmost(remaining)
        inside = rasterize(as_polygon(_corners_of(outline)), (width, height))
        area = np.count_nonzero(inside & remaining)
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
    padded = np.zeros((height + 2, width + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = mask
    left, middle, right = padded[:, :-2], padded[:, 1:-1] << 1, padded[:, 2:]
    around = (left | middle | right << 2)[:-2] << 5  # the row above, in the order of _STEPS
    around |= (right | middle | left << 2)[2:] << 1  # the row below
    around |= right[1:-1] | left[1:-1] << 4
    neighbours, offsets = around.tobytes(), [dx + dy * width for dx, dy in _STEPS]
    start = int(mask.argmax())
    position, found = start, [start]
    step = first = _NEXT_STEP[0][neighbours[start]]
    while step < 8:  # which it is but for a single pixel
        position += offsets[step]
        step = _NEXT_STEP[_SEARCH_AFTER[step]][neighbours[position]]
        if position == start and step == first:
            break
        found.append(position)
    rows, columns = np.divmod(np.array(found), width)
    return np.stack([columns, rows], axis=1)


def _corners_of(outline: np.ndarray) -> np.ndarray:
    """The first of the points, and those at which a closed (N, 2) outline turns."""
    steps = np.concatenate([outline[1:], outline[:1]]) - outline
    turns = np.ones(len(outline), dtype=bool)
    turns[1:] = (steps[1:] != steps[:-1]).any(axis=1)
    return outline[turns]


def simplify(outline: np.ndarray, tolerance: float) -> np.ndarray:
    """Closed (N, 2) outline with fewer points, off by at most ``tolerance`` px: Douglas-Peucker."""
    if len(outline) <= 4:
        return outline
    outline = _corners_of(outline)  # no other point is farthest from a line
    closed = np.concatenate([outline, outline[:1]])
    xs, ys = closed.T
    far = int(np.argmax((xs - xs[0]) ** 2 + (ys - ys[0]) ** 2))
    corners = closed.tolist()
    kept, pending = {0, far}, [(0, far), (far, len(outline))]
    while pending:
        a, b = pending.pop()
        if b - a < 2:
            continue
        (ax, ay), (bx, by) = corners[a], corners[b]
        dx, dy = bx - ax, by - ay
        length, line = math.hypot(dx, dy), ax * dy - ay * dx
        if length == 0:
            away = [math.hypot(x - ax, y - ay) for x, y in corners[a + 1 : b]]
            worst = away.index(distance := max(away))
        elif b - a > _FEW:
            doubled = np.abs(xs[a + 1 : b] * dy - ys[a + 1 : b] * dx - line)
            worst = int(np.argmax(doubled))
            distance = float(doubled[worst]) / length
        else:
            sides = [x * dy - y * dx for x, y in corners[a + 1 : b]]
            left, right = max(sides), min(sides)
            most = max(left - line, line - right)
            distance = most / length
            if distance <= tolerance:
                continue
            worst = min(sides.index(side) for side in (left, right) if abs(side - line) == most)
        if distance > tolerance:
            middle = a + 1 + worst
            kept.add(middle)
            pending += [(a, middle), (middle, b)]
    return outline[sorted(kept)]


@dataclass(frozen=True)
class Sprite:
    """A painted object.

    Attributes:
        x, y: upper left corner in the picture, px.
        alpha: (h, w) uint8, 0..255: how much of each pixel the object hides; `cover` is the same as
            (h, w) float32, 0..1.
        polygon: integer outline in picture coordinates, inside the frame.
        colors: gives `rgb`; few sprites are seen, and only those are coloured.
    """

    x: int
    y: int
    alpha: np.ndarray
    polygon: Polygon
    colors: Callable[[], np.ndarray]

    @property
    def cover(self) -> np.ndarray:
        return self.alpha.astype(np.float32) / 255

    @property
    def rgb(self) -> np.ndarray:
        """(3, h, w) float32, 0..255."""
        return self.colors()


class Drawing:
    """A list of flat coloured parts in picture coordinates (px), painted in order.

    Attributes:
        parts: (number of corners, RGBA 0..255) of each.
        corners: x and y in turn, of all parts.
    """

    def __init__(self, base: Color, *, relief: float = 0.0, grain: float = 0.0) -> None:
        """``base`` shows where parts leave gaps inside the outline; ``relief`` (0..1) rounds the
        whole object by shading, ``grain`` (0..1) is the contrast of its surface texture."""
        self.base = base
        self.relief = relief
        self.grain = grain
        self.parts: list[tuple[int, tuple[int, int, int, int]]] = []
        self.corners = array("d")
        self._extent: tuple[float, float, float, float] | None = None  # x0, y0, x1, y1 of them

    def add(self, points: Points, color: Sequence[float], alpha: int = 255) -> None:
        """Append a filled polygon; ``alpha`` below 255 lets the background show through.

        ``points`` (x, y) are float64 where they are an array.
        """
        if len(points) >= 3:
            r, g, b = color
            self.parts.append((len(points), (_byte(r), _byte(g), _byte(b), alpha)))
            if isinstance(points, np.ndarray):
                self.corners.frombytes(points.tobytes())
            else:
                self.corners.extend(chain.from_iterable(points))
            self._extent = None

    def extend(self, other: Drawing) -> None:
        self.parts += other.parts
        self.corners += other.corners
        self._extent = None

    def box(self, frame: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Part x0, y0, x1, y1 (half-open, px) of the (W, H) frame that holds all of it, if any."""
        if not self.parts:
            return None
        if self._extent is None:
            corners = np.frombuffer(self.corners)
            xs, ys = corners[::2], corners[1::2]
            self._extent = xs.min(), ys.min(), xs.max(), ys.max()
        left, top, right, bottom = self._extent
        x0, y0 = max(0, math.floor(left) - 1), max(0, math.floor(top) - 1)
        x1, y1 = min(frame[0], math.ceil(right) + 2), min(frame[1], math.ceil(bottom) + 2)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def render(
        self, frame: tuple[int, int], light: Light, z: float, texture: np.ndarray
    ) -> Sprite | None:
        """Paint into a crop of the (W, H) frame; None where nothing of it can be seen.

        Args:
            light: for the shading of `relief`, and the haze at depth ``z`` (m).
            texture: (T, T) float32 noise around 0, for `grain`.
        """
        box = self.box(frame)
        if box is None:
            return None
        x0, y0, x1, y1 = box
        width, height = x1 - x0, y1 - y0
        fine = min(5, max(2, math.ceil(120 / max(width, height))))
        # four plain channels: RGBA would be weighted by its last one when reduced
        image = Image.new("CMYK", (width * fine, height * fine), (*map(int, self.base), 0))
        draw = ImageDraw.Draw(image)
        corners = np.frombuffer(self.corners).reshape(-1, 2)
        shifted = np.rint((corners - (x0, y0)) * fine).clip(-30000, 30000).ravel().tolist()
        at = 0
        for count, color in self.parts:
            draw.polygon(shifted[at : at + 2 * count], fill=color)
            at += 2 * count
        pixels = np.asarray(image.reduce(fine))
        alpha = pixels[..., 3]
        outline = trace_outline(alpha >= _SOLID)
        if len(outline) == 0:
            return None
        tolerance = 0.6 if max(width, height) < 200 else 0.9
        polygon = as_polygon(simplify(outline, tolerance) + np.array((x0, y0)))

        def colors() -> np.ndarray:
            rgb = np.stack([pixels[..., channel] for channel in range(3)]).astype(np.float32)
            rgb *= self._shading(alpha, light, texture)
            share = np.float32(light.haze_share(z))
            rgb += share * (column(light.haze)[..., None] - rgb)
            return rgb

        return Sprite(x0, y0, alpha, polygon, colors)

    def _shading(self, alpha: np.ndarray, light: Light, texture: np.ndarray) -> np.ndarray:
        """(h, w) factors: rim darker than the middle, sunny side brighter, plus surface texture."""
        height, width = alpha.shape
        shade = np.ones((height, width), dtype=np.float32)
        if self.relief > 0:
            radius = max(1.0, min(width, height) / 7)
            blurred = Image.fromarray(alpha).filter(ImageFilter.BoxBlur(radius))
            soft = np.asarray(blurred).astype(np.float32) / 255
            slope = np.zeros_like(soft)
            slope[:, 1:-1] = (soft[:, 2:] - soft[:, :-2]) * radius
            sideways = -light.sun[0] * (0.3 + 0.7 * light.strength)
            shade += self.relief * (0.35 * (soft - 0.8) + 0.45 * sideways * slope)
            shade *= np.linspace(1 + 0.1 * self.relief, 1 - 0.1 * self.relief, height)[:, None]
        if self.grain > 0:
            size = len(texture)
            grain = texture[:height, :width]
            if max(height, width) > size:
                grain = texture[np.ix_(np.arange(height) % size, np.arange(width) % size)]
            shade *= 1 + self.grain * grain
        return shade.astype(np.float32)


def _byte(value: float) -> int:
    return 0 if value < 0 else 255 if value > 255 else int(value)
