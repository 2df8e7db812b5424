"""Layers of a picture, each one polygon of the truth with its paint."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from d2_cityscapes.labels import INSTANCE_DIVISOR
from d2_cityscapes.labels.cityscapes import CITYSCAPES_LABELS
from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.sprites import Drawing, Points, Polygon, Sprite, rasterize
from d2_cityscapes.synthetic.street.textures import noise_tile

__all__ = ["MIN_SHARE", "Canvas", "Paint", "clip_polygon", "draw_ids", "label_id_of", "min_visible"]

_MOSTLY = 102  # of 255: two fifths of a pixel, above which it counts for the size of a thing
MIN_SHARE = 0.25  # a thing of which others hide all but this share is left out


def min_visible(size: tuple[int, int]) -> float:
    """Pixels of a (W, H) picture below which a visible thing is left out.

    80 from 256 x 512 on, where nobody could tell what it is; fewer, but 12, in smaller pictures.
    """
    return float(np.clip(80 * size[0] * size[1] / (256 * 512), 12, 80))


Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Colours (3, N) float32 of the pixels at columns and rows (N,) of the picture."""


@functools.cache
def label_id_of(label: str) -> tuple[int, bool]:
    """Label id of an object's label, and whether the object is one instance of its class.

    "cargroup" and the like are regions of several instances, as in Cityscapes' polygon files.
    """
    if label in CITYSCAPES_LABELS:
        return CITYSCAPES_LABELS[label].label_id, CITYSCAPES_LABELS[label].has_instances
    return CITYSCAPES_LABELS[label.removesuffix("group")].label_id, False


def draw_ids(objects: list[tuple[str, Polygon]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint16 instance ids of polygons in drawing order, rasterised as the official tools do.

    ``size`` is (W, H).
    """
    image = Image.new("I", size, 0)
    draw = ImageDraw.Draw(image)
    counts: dict[int, int] = {}
    for label, polygon in objects:
        value, is_instance = label_id_of(label)
        if is_instance:
            number = counts.get(value, 0)
            counts[value] = number + 1
            value = value * INSTANCE_DIVISOR + number
        if value >= 0:  # number plates have label id -1
            draw.polygon(polygon, fill=value)
    return np.asarray(image).astype(np.uint16)


def clip_polygon(points: Points, size: tuple[int, int]) -> Polygon:
    """Integer polygon of (N, 2) px cut at the (W, H) frame; empty where nothing is inside."""
    corners = [(float(x), float(y)) for x, y in points]
    for axis, limit, sign in ((0, 0, 1), (0, size[0] - 1, -1), (1, 0, 1), (1, size[1] - 1, -1)):
        cut = []
        for p, q in zip(corners, corners[1:] + corners[:1], strict=True):
            p_inside, q_inside = sign * (p[axis] - limit) >= 0, sign * (q[axis] - limit) >= 0
            if p_inside:
                cut.append(p)
            if p_inside != q_inside:
                t = (limit - p[axis]) / (q[axis] - p[axis])
                cut.append((p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])))
        corners = cut
    polygon: Polygon = []
    for x, y in corners:
        if not polygon or polygon[-1] != (round(x), round(y)):
            polygon.append((round(x), round(y)))
    return polygon if len(polygon) >= 3 else []


@dataclass
class _Layer:
    """A surface, or an object: a drawing at a depth, which becomes a sprite with an outline.

    An object of which nothing can be seen stays without.
    """

    label: str
    polygon: Polygon
    paint: Paint | None = None
    drawing: Drawing | None = None
    z: float = 0.0
    sprite: Sprite | None = None


class Canvas:
    """Collects layers back to front, then paints them.

    Attributes:
        grain, smooth: square noise textures with and without fine grain.
    """

    def __init__(self, camera: Camera, light: Light, rng: np.random.Generator) -> None:
        self.camera, self.light = camera, light
        self.size = (camera.width, camera.height)
        self.grain = noise_tile(rng, 200, 80, fine=0.6)
        self.smooth = noise_tile(rng, 48, 22, 9)
        self._layers: list[_Layer] = []

    @property
    def objects(self) -> list[tuple[str, Polygon]]:
        return [(layer.label, layer.polygon) for layer in self._layers]

    def add_surface(self, label: str, outline: Points, paint: Paint | None = None) -> None:
        """A polygon (N, 2) px with its paint; without, the truth alone."""
        if len(outline) >= 3 and (polygon := clip_polygon(outline, self.size)):
            self._layers.append(_Layer(label, polygon, paint))

    def add_drawing(self, label: str, drawing: Drawing, z: float) -> None:
        """An object at depth ``z`` (m)."""
        self._layers.append(_Layer(label, [], drawing=drawing, z=z))

    def drop_hidden(self) -> None:
        """Leave out things of which next to nothing, and then all of which nothing, can be seen."""

        least = min_visible(self.size)

        def required(layer: _Layer) -> float:
            if layer.sprite is None or not label_id_of(layer.label)[1]:
                return 0
            return max(least, MIN_SHARE * np.count_nonzero(layer.sprite.alpha > _MOSTLY))

        self._render()
        self._keep_visible(required)
        self._keep_visible(lambda layer: 1)

    def _render(self) -> None:
        """Turn drawings into sprites, but for those that would be left out in any case.

        What a surface hides never comes to light; of one instance, what anything hides does not.
        """
        surfaces, everything = Image.new("L", self.size), Image.new("L", self.size)
        on_surfaces, on_everything = ImageDraw.Draw(surfaces), ImageDraw.Draw(everything)
        rendered: list[_Layer] = []
        for layer in reversed(self._layers):
            label_id, is_instance = label_id_of(layer.label)
            if layer.drawing is not None:
                box = layer.drawing.box(self.size)
                if box is None:
                    continue
                before = everything if is_instance else surfaces
                if before.crop(box).getextrema()[0] == 0:
                    sprite = layer.drawing.render(self.size, self.light, layer.z, self.grain)
                    if sprite is None:
                        continue
                    layer.polygon, layer.sprite = sprite.polygon, sprite
                    on_everything.polygon(layer.polygon, fill=1)
            elif label_id >= 0:
                on_surfaces.polygon(layer.polygon, fill=1)
                on_everything.polygon(layer.polygon, fill=1)
            rendered.append(layer)
        self._layers = rendered[::-1]

    def _keep_visible(self, required: Callable[[_Layer], float]) -> None:
        """Keep the layers of which at least the required number of pixels can be seen."""
        image = Image.new("L" if len(self._layers) < 256 else "I", self.size, 0)
        draw = ImageDraw.Draw(image)
        for index, layer in enumerate(self._layers):
            if layer.polygon and label_id_of(layer.label)[0] >= 0:
                draw.polygon(layer.polygon, fill=index + 1)
        visible = np.bincount(np.asarray(image).ravel(), minlength=len(self._layers) + 1)[1:]
        kept: list[_Layer] = []
        for index, (layer, count) in enumerate(zip(self._layers, visible.tolist(), strict=True)):
            if label_id_of(layer.label)[0] < 0:  # a number plate comes and goes with its vehicle
                keep = bool(kept) and kept[-1] is self._layers[index - 1]
            else:
                keep = count >= required(layer)
            if keep:
                kept.append(layer)
        self._layers = kept

    def paint(self) -> np.ndarray:
        """(3, H, W) float32 picture of all layers, 0..255.

        First of each pixel the surface that is in front there, alone; then what stands before it.
        """
        width, height = self.size
        image = np.zeros((3, height, width), dtype=np.float32)
        flat = image.reshape(3, -1)
        front = self._front_surfaces()
        order = np.argsort(front, axis=None, kind="stable")
        ends = np.cumsum(np.bincount(front.ravel(), minlength=len(self._layers) + 1)).tolist()
        for number, layer in enumerate(self._layers, start=1):
            pixels = order[ends[number - 1] : ends[number]]
            if layer.paint is not None and len(pixels):
                rows = pixels // width
                colors = layer.paint(pixels - rows * width, rows)
                for channel in range(3):  # sooner than all at once
                    flat[channel][pixels] = colors[channel]
        for number, layer in enumerate(self._layers, start=1):
            if layer.sprite is None:
                continue
            sprite = layer.sprite
            x0, y0, (h, w) = sprite.x, sprite.y, sprite.alpha.shape
            box = np.s_[:, y0 : y0 + h, x0 : x0 + w]
            inside = rasterize([(x - x0, y - y0) for x, y in layer.polygon], (w, h))
            # smooth edges: label and colour agree on who has more
            cover = sprite.cover
            cover = np.where(inside, np.maximum(cover, 0.45), np.minimum(cover, 0.35))
            cover *= front[box[1:]] < number
            image[box] += cover * (sprite.rgb - image[box])
        return image

    def _front_surfaces(self) -> np.ndarray:
        """(H, W) uint16: from 1 on, which layer of those with a paint is in front; 0 for none."""
        front = np.zeros(self.size[::-1], dtype=np.uint16)
        for number, layer in enumerate(self._layers, start=1):
            if layer.paint is not None:
                xs, ys = zip(*layer.polygon, strict=True)
                x0, y0, x1, y1 = min(xs), min(ys), max(xs) + 1, max(ys) + 1
                inside = rasterize([(x - x0, y - y0) for x, y in layer.polygon], (x1 - x0, y1 - y0))
                front[y0:y1, x0:x1][inside] = number
        return front
