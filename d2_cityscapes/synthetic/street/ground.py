"""The ground plane: road with markings, paving, grass and tram tracks, and the shadows on it.

R is the number of picture rows below the horizon, W the picture's width. Lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from d2_cityscapes.synthetic.street.camera import convex_hull
from d2_cityscapes.synthetic.street.canvas import Canvas, Paint
from d2_cityscapes.synthetic.street.colors import Color, vary
from d2_cityscapes.synthetic.street.street import LANE, Street
from d2_cityscapes.synthetic.street.textures import TILE, blend, stripe

__all__ = ["add_ground"]

_PAVING: list[Color] = [(156, 150, 142), (144, 134, 124), (166, 150, 136), (138, 140, 142)]
_GRASS: list[Color] = [(96, 116, 58), (118, 118, 66), (84, 108, 60), (132, 120, 78)]
_ASPHALT: list[Color] = [(92, 92, 94), (104, 104, 104), (114, 112, 110), (98, 100, 106)]
_TRACK_BED = np.array((118, 108, 100), dtype=np.float32)
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

    paving, grass = ground.paint(ground.paving()), ground.paint(ground.grass())
    asphalt = ground.paint(ground.asphalt(_sample_markings(street, rng)))
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
        bed = ground.paint(ground.track())
        add("rail track", bed, street.rails - 1.25, street.rails + 1.25, near, _BEYOND)


class _Ground:
    """Materials of the ground in the picture's perspective; each method gives (R, W, 3) float32.

    Attributes:
        top: first row of the ground, px.
        x: (R, W) and z: (R, 1): place on the ground of every pixel.
        across: (R, 1) and along: (R, 1): size of a pixel on the ground in x and z.
    """

    def __init__(self, canvas: Canvas, street: Street, rng: np.random.Generator) -> None:
        camera = canvas.camera
        self.street, self.light, self.size = street, canvas.light, canvas.size
        self.top = min(camera.height - 1, int(camera.horizon) + 1)
        rows = np.arange(self.top, camera.height, dtype=np.float32)[:, None] + 0.5 - camera.horizon
        columns = np.arange(camera.width, dtype=np.float32)[None, :] + 0.5 - camera.center_x
        self.z = (camera.focal * camera.elevation / np.maximum(rows, 0.25)).astype(np.float32)
        self.across = self.z / np.float32(camera.focal)
        self.along = self.z**2 / np.float32(camera.focal * camera.elevation)
        self.x = columns * self.across
        self.fine = self._sample(canvas.grain, 90.0) * np.clip(0.4 + 6 / self.z, 0, 1)
        self.rough = self._sample(canvas.smooth, 22.0)
        self.wide = self._sample(canvas.smooth, 3.1)
        self.colors = {
            name: np.array(vary(rng, choices, 8), dtype=np.float32)
            for name, choices in (("asphalt", _ASPHALT), ("paving", _PAVING), ("grass", _GRASS))
        }
        self.slab = rng.uniform(0.4, 0.9)
        self.lit = self._shadows(canvas) * np.float32(0.9 + 0.18 * self.light.strength)
        self.share = 1 - np.exp(-self.z / np.float32(self.light.visibility))[..., None]

    def _sample(self, tile: np.ndarray, per_metre: float) -> np.ndarray:
        """(R, W) values of a repeating texture laid on the ground."""
        rows = (self.z * per_metre).astype(np.int32) % TILE
        columns = (self.x * per_metre).astype(np.int32) % TILE
        return tile[rows, columns]

    def paint(self, colors: np.ndarray) -> Paint:
        """Put shadows and haze on a material."""
        colors *= self.lit[..., None]
        colors += self.share * (np.array(self.light.haze, dtype=np.float32) - colors)

        def paint(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
            rows = np.arange(y0, y1).clip(self.top) - self.top  # outlines are rounded to pixels
            return colors[rows, x0:x1]

        return paint

    def asphalt(self, marks: _Markings) -> np.ndarray:
        factor = 1 + 0.055 * self.fine + 0.03 * self.rough + 0.05 * self.wide
        for x, z, half_width, half_length, dark in marks.patches:
            inside = stripe(self.x, x - half_width, x + half_width, self.across)
            inside = inside * stripe(self.z, z - half_length, z + half_length, self.along)
            factor *= 1 - dark * inside
        left, right = self.street.road
        gutter = stripe(self.x, left - 1, left + 0.35, 4 * self.across)
        gutter += stripe(self.x, right - 0.35, right + 1, 4 * self.across)
        colors = (factor * (1 - 0.13 * gutter))[..., None] * self.colors["asphalt"]
        painted = np.zeros_like(self.x)
        for x in marks.solid:
            painted += stripe(self.x, x - 0.07, x + 0.07, self.across)
        dashed = stripe(self.z % 9.0, 0.0, 4.0, self.along)
        for x in marks.dashes:
            painted += dashed * stripe(self.x, x - 0.07, x + 0.07, self.across)
        if marks.crosswalk is not None:
            z0, z1 = marks.crosswalk
            painted *= 1 - stripe(self.z, z0 - 0.6, z1 + 0.6, self.along)
            zebra = stripe(self.x % 1.0, 0.0, 0.5, self.across)
            zebra *= stripe(self.x, left + 0.3, right - 0.3, self.across)
            painted += zebra * stripe(self.z, z0, z1, self.along)
        if marks.stop is not None:
            z, x0, x1 = marks.stop
            line = stripe(self.x, x0, x1, self.across)
            painted += line * stripe(self.z, z, z + 0.5, self.along)
        worn = np.clip(0.8 + 0.35 * self.rough, 0.35, 0.95)
        blend(colors, (226, 226, 220), np.minimum(painted, 1) * worn)
        if self.street.rails is not None and self.street.crossing is not None:
            self._lay_rails(colors, self.street.rails)
        return colors

    def track(self) -> np.ndarray:
        factor = 0.92 + 0.1 * self.rough + 0.08 * self.fine
        factor -= 0.12 * stripe(self.z % 0.6, 0.0, 0.1, self.along)
        colors = factor[..., None] * _TRACK_BED
        if self.street.rails is not None:
            self._lay_rails(colors, self.street.rails)
        return colors

    def _lay_rails(self, colors: np.ndarray, middle: float) -> None:
        for x in (middle - 0.72, middle + 0.72):
            groove = stripe(self.x, x - 0.14, x + 0.14, self.across)
            blend(colors, (58, 54, 52), 0.7 * groove)
            steel = stripe(self.x, x - 0.04, x + 0.04, self.across)
            blend(colors, (168, 170, 172), 0.9 * steel)

    def paving(self) -> np.ndarray:
        """Slabs, and kerb stones along the road."""
        across = stripe(self.x % self.slab, 0.0, 0.025, self.across)
        across *= np.clip(0.03 / self.across, 0, 1)
        along = stripe(self.z % self.slab, 0.0, 0.03, self.along) * np.clip(0.06 / self.along, 0, 1)
        slab = np.floor(self.x / self.slab) * 7.13 + np.floor(self.z / self.slab) * 3.71
        uneven = ((0.618 * slab) % 1 - 0.5) * np.clip(0.5 / self.along, 0, 1)
        factor = 1 + 0.05 * self.fine + 0.04 * self.rough + 0.06 * uneven
        factor *= 1 - 0.2 * np.maximum(across, along)
        colors = factor.astype(np.float32)[..., None] * self.colors["paving"]
        for x in self.street.road:
            stone = stripe(self.x, x - 0.16, x + 0.16, self.across)
            blend(colors, (188, 186, 180), stone * (0.75 + 0.15 * self.rough))
        return colors

    def grass(self) -> np.ndarray:
        """Meadow with bare patches."""
        colors = (1 + 0.17 * self.fine + 0.11 * self.rough)[..., None] * self.colors["grass"]
        blend(colors, (136, 116, 86), np.clip(0.5 * self.wide + 0.25 * self.rough - 0.2, 0, 0.6))
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
                flat = np.rint((outline - (0, self.top)) / 2).clip(-20000, 20000)
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
