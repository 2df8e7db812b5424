"""The ground plane: road with markings, paving, grass and tram tracks, and the shadows on it.

R is the number of picture rows below the horizon, W the picture's width; N pixels are painted.
Lengths are metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from d2_cityscapes.synthetic.street.camera import convex_hull
from d2_cityscapes.synthetic.street.canvas import Canvas, Paint
from d2_cityscapes.synthetic.street.colors import Color, column, vary
from d2_cityscapes.synthetic.street.street import LANE, Street
from d2_cityscapes.synthetic.street.textures import between_0_and_1, blend, repeat, stripe

__all__ = ["add_ground"]

_PAVING: list[Color] = [(156, 150, 142), (144, 134, 124), (166, 150, 136), (138, 140, 142)]
_GRASS: list[Color] = [(96, 116, 58), (118, 118, 66), (84, 108, 60), (132, 120, 78)]
_ASPHALT: list[Color] = [(92, 92, 94), (104, 104, 104), (114, 112, 110), (98, 100, 106)]
_TRACK_BED = column((118, 108, 100))
_BEYOND = 900.0  # m: ahead and to both sides, where the ground ends


@dataclass
class _Markings:
    """What is painted on the road.

    Attributes:
        dashes, solid: x of dashed and of full lines.
        crosswalk: z0, z1 of zebra stripes across the road. stop: z, x0, x1 of a stop line.
        patches: x, z, half width, half length, darkness of mended asphalt.
    """

    dashes: list[float] = field(default_factory=list)
    solid: list[float] = field(default_factory=list)
    crosswalk: tuple[float, float] | None = None
    stop: tuple[float, float, float] | None = None
    patches: list[tuple[float, float, float, float, float]] = field(default_factory=list)


def _sample_markings(street: Street, rng: np.random.Generator) -> _Markings:
    marks = _Markings()
    middles = [x for x, _ in street.lanes]
    for x in middles[:-1]:
        (marks.solid if rng.random() < 0.2 else marks.dashes).append(x + LANE / 2)
    if rng.random() < 0.5:
        marks.solid += [middles[0] - LANE / 2, middles[-1] + LANE / 2]
    if street.crossing is not None and rng.random() < 0.8:
        z = street.crossing[0]
        marks.crosswalk = (z - 4.2, z - 1.2)
        marks.stop = (z - 5.8, middles[-1] - LANE / 2, middles[-1] + LANE / 2)
    for _ in range(int(rng.integers(2, 7))):
        x, z = rng.uniform(*street.road), rng.uniform(6, 40)
        half = rng.uniform(0.3, 1.4), rng.uniform(0.5, 5)
        marks.patches.append((x, z, *half, rng.uniform(-0.06, 0.14)))
    return marks


def add_ground(canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
    """Add land, sidewalks, verges, roads and tram tracks, from below the camera to the horizon."""
    ground = _Ground(canvas, street, rng)
    near = canvas.camera.nearest_ground * 0.8

    def add(label: str, paint: Paint, x0: float, x1: float, z0: float, z1: float) -> None:
        corners = [(x0, 0.0, z0), (x0, 0.0, z1), (x1, 0.0, z1), (x1, 0.0, z0)]
        canvas.add_surface(label, canvas.camera.outline(corners), paint)

    marks = _sample_markings(street, rng)
    paving, grass = ground.paint(ground.paving), ground.paint(ground.grass)
    asphalt = ground.paint(lambda spot: ground.asphalt(spot, marks))
    for side in street.sides:
        land = ("terrain", grass) if side.grass else ("sidewalk", paving)
        add(*land, side.kerb, side.outward * _BEYOND, near, _BEYOND)  # the rest lies upon it
        add("sidewalk", paving, *side.walk, near, _BEYOND)
        if side.verge is not None:
            add("terrain", grass, *side.verge, near, _BEYOND)
    if street.crossing is not None:
        add("road", asphalt, -_BEYOND, _BEYOND, *street.crossing)
    add("road", asphalt, *street.road, near, _BEYOND)
    if street.rails is not None:
        bed = ground.paint(ground.track)
        add("rail track", bed, street.rails - 1.25, street.rails + 1.25, near, _BEYOND)


@dataclass(frozen=True)
class _Spots:
    """N pixels on the ground.

    Attributes:
        rows: (N,) their row on the ground, of which there are R. x: (N,) their place.
        across: (N,) size of a pixel there in x.
        fine, rough, wide: (N,) noise around 0 of three sizes.
    """

    rows: np.ndarray
    x: np.ndarray
    across: np.ndarray
    fine: np.ndarray
    rough: np.ndarray
    wide: np.ndarray


Material = Callable[[_Spots], np.ndarray]
"""Colours (3, N) float32 of spots, without shadow and haze."""


class _Ground:
    """Materials of the ground in the picture's perspective.

    Attributes:
        top: first row of the ground, px.
        z: (R,) depth, across and along: (R,) size of a pixel there in x and z.
    """

    def __init__(self, canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
        camera = canvas.camera
        self.street, self.light, self.size = street, canvas.light, canvas.size
        self.grain, self.smooth = canvas.grain, canvas.smooth
        self.top = min(camera.height - 1, int(camera.horizon) + 1)
        rows = np.arange(self.top, camera.height, dtype=np.float32) + 0.5 - camera.horizon
        self.columns = np.arange(camera.width, dtype=np.float32) + 0.5 - camera.center_x
        self.z = (camera.focal * camera.elevation / np.maximum(rows, 0.25)).astype(np.float32)
        self.across = self.z / np.float32(camera.focal)
        self.along = self.z**2 / np.float32(camera.focal * camera.elevation)
        self.colors = {
            name: column(vary(rng, choices, 8))
            for name, choices in (("asphalt", _ASPHALT), ("paving", _PAVING), ("grass", _GRASS))
        }
        self.slab = rng.uniform(0.4, 0.9)
        self.lit = self._shadows(canvas) * np.float32(0.9 + 0.18 * self.light.strength)
        self.share = 1 - np.exp(-self.z / np.float32(self.light.visibility))

    def paint(self, material: Material) -> Paint:
        """Put shadows and haze on a material."""
        haze = column(self.light.haze)

        def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            rows = y.clip(self.top) - self.top  # outlines are rounded to pixels
            colors = material(self._spots(x, rows))
            colors *= self.lit[rows, x]
            colors += self.share[rows] * (haze - colors)
            return colors

        return paint

    def _spots(self, columns: np.ndarray, rows: np.ndarray) -> _Spots:
        across = self.across[rows]
        x = self.columns[columns] * across

        def sample(tile: np.ndarray, per_metre: float) -> np.ndarray:
            """A repeating texture laid on the ground."""
            return tile[repeat(self.z * per_metre)[rows], repeat(x * per_metre)]

        fine = sample(self.grain, 90.0) * between_0_and_1(0.4 + 6 / self.z)[rows]
        rough, wide = sample(self.smooth, 22.0), sample(self.smooth, 3.1)
        return _Spots(rows, x, across, fine, rough, wide)

    def _stripe(self, z: np.ndarray, low: float, high: float) -> np.ndarray:
        """(R,) share of each row inside low..high of ``z`` (R,)."""
        return stripe(z, low, high, self.along)

    def asphalt(self, spots: _Spots, marks: _Markings) -> np.ndarray:
        across, rows = spots.across, spots.rows
        factor = 1 + 0.055 * spots.fine + 0.03 * spots.rough + 0.05 * spots.wide
        for x, z, half_width, half_length, dark in marks.patches:
            inside = stripe(spots.x, x - half_width, x + half_width, across)
            inside = inside * self._stripe(self.z, z - half_length, z + half_length)[rows]
            factor *= 1 - dark * inside
        left, right = self.street.road
        gutter = stripe(spots.x, left - 1, left + 0.35, 4 * across)
        gutter += stripe(spots.x, right - 0.35, right + 1, 4 * across)
        colors = factor * (1 - 0.13 * gutter) * self.colors["asphalt"]
        painted = np.zeros_like(spots.x)
        for x in marks.solid:
            painted += stripe(spots.x, x - 0.07, x + 0.07, across)
        dashed = self._stripe(self.z % 9.0, 0.0, 4.0)[rows]
        for x in marks.dashes:
            painted += dashed * stripe(spots.x, x - 0.07, x + 0.07, across)
        if marks.crosswalk is not None:
            z0, z1 = marks.crosswalk
            painted *= (1 - self._stripe(self.z, z0 - 0.6, z1 + 0.6))[rows]
            zebra = stripe(spots.x % 1.0, 0.0, 0.5, across)
            zebra *= stripe(spots.x, left + 0.3, right - 0.3, across)
            painted += zebra * self._stripe(self.z, z0, z1)[rows]
        if marks.stop is not None:
            z, x0, x1 = marks.stop
            line = stripe(spots.x, x0, x1, across)
            painted += line * self._stripe(self.z, z, z + 0.5)[rows]
        worn = np.clip(0.8 + 0.35 * spots.rough, 0.35, 0.95)
        blend(colors, (226, 226, 220), np.minimum(painted, 1) * worn)
        if self.street.rails is not None and self.street.crossing is not None:
            self._lay_rails(colors, spots, self.street.rails)
        return colors

    def track(self, spots: _Spots) -> np.ndarray:
        factor = 0.92 + 0.1 * spots.rough + 0.08 * spots.fine
        factor -= (0.12 * self._stripe(self.z % 0.6, 0.0, 0.1))[spots.rows]
        colors = factor * _TRACK_BED
        if self.street.rails is not None:
            self._lay_rails(colors, spots, self.street.rails)
        return colors

    def _lay_rails(self, colors: np.ndarray, spots: _Spots, middle: float) -> None:
        for x in (middle - 0.72, middle + 0.72):
            groove = stripe(spots.x, x - 0.14, x + 0.14, spots.across)
            blend(colors, (58, 54, 52), 0.7 * groove)
            steel = stripe(spots.x, x - 0.04, x + 0.04, spots.across)
            blend(colors, (168, 170, 172), 0.9 * steel)

    def paving(self, spots: _Spots) -> np.ndarray:
        """Slabs, and kerb stones along the road."""
        x, rows = spots.x, spots.rows
        across = stripe(x % self.slab, 0.0, 0.025, spots.across)
        across *= between_0_and_1(0.03 / self.across)[rows]
        along = self._stripe(self.z % self.slab, 0.0, 0.03) * between_0_and_1(0.06 / self.along)
        slab = np.floor(x / self.slab) * 7.13 + (np.floor(self.z / self.slab) * 3.71)[rows]
        uneven = ((0.618 * slab) % 1 - 0.5) * between_0_and_1(0.5 / self.along)[rows]
        factor = 1 + 0.05 * spots.fine + 0.04 * spots.rough + 0.06 * uneven
        factor *= 1 - 0.2 * np.maximum(across, along[rows])
        colors = factor * self.colors["paving"]
        for kerb in self.street.road:
            stone = stripe(x, kerb - 0.16, kerb + 0.16, spots.across)
            blend(colors, (188, 186, 180), stone * (0.75 + 0.15 * spots.rough))
        return colors

    def grass(self, spots: _Spots) -> np.ndarray:
        """Meadow with bare patches."""
        rough = spots.rough
        colors = (1 + 0.17 * spots.fine + 0.11 * rough) * self.colors["grass"]
        blend(colors, (136, 116, 86), np.clip(0.5 * spots.wide + 0.25 * rough - 0.2, 0, 0.6))
        return colors

    def _shadows(self, canvas: Canvas) -> np.ndarray:
        """(R, W) brightness: dark below things; cast shadows on clear days."""
        camera, light = canvas.camera, self.light
        width, height = self.size[0] // 2, (self.size[1] - self.top) // 2 + 1
        image = Image.new("L", (width, height), 255)
        draw = ImageDraw.Draw(image)

        def darken(corners: list[tuple[float, float]], dark: float) -> None:
            outline = camera.outline([(x, 0.0, z) for x, z in corners])
            if len(outline) >= 3:
                flat = np.rint((np.array(outline) - (0, self.top)) / 2).clip(-20000, 20000)
                draw.polygon(flat.ravel().tolist(), fill=int(255 * (1 - dark)))

        sx, sy, sz = light.sun
        cast = 0.1 + 0.32 * light.strength
        if light.strength > 0.25:
            plots = [p for side in self.street.sides for p in side.plots if p.storeys]
            blocks = [(p.x, p.x, p.z0, p.z1, 3.6 + 3.3 * p.storeys) for p in plots]
            props = [p for p in self.street.props if p.shadow]
            blocks += [(p.x0, p.x1, p.z0, p.z1, 0.8 * p.height) for p in props]
            for x0, x1, z0, z1, high in blocks:
                dx, dz = -sx / sy * high, -sz / sy * high
                foot = [(x, z) for x in (x0, x1) for z in (z0, z1)]
                darken(convex_hull(foot + [(x + dx, z + dz) for x, z in foot]), cast)
        for prop in self.street.props:
            if prop.shadow:
                x0, x1, z0, z1 = prop.x0 - 0.12, prop.x1 + 0.12, prop.z0 - 0.12, prop.z1 + 0.12
                darken([(x0, z0), (x0, z1), (x1, z1), (x1, z0)], 0.55)
        soft = image.filter(ImageFilter.GaussianBlur(camera.height / 440))
        full = (self.size[0], self.size[1] - self.top)
        return np.asarray(soft.resize(full, Image.Resampling.BILINEAR)).astype(np.float32) / 255
