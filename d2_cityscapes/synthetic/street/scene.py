"""A made-up street scene: picture, map of instance ids, and polygons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2_cityscapes.synthetic.street.canvas import Canvas, draw_ids
from d2_cityscapes.synthetic.street.colors import Color, column, pick
from d2_cityscapes.synthetic.street.ground import add_ground
from d2_cityscapes.synthetic.street.houses import add_backdrop, add_plots, add_sky
from d2_cityscapes.synthetic.street.sprites import Drawing, Polygon
from d2_cityscapes.synthetic.street.street import Street, back_to_front, sample_street
from d2_cityscapes.synthetic.street.traffic import populate

__all__ = ["Scene", "render_scene"]

_HOODS: list[Color] = [(34, 36, 40), (52, 54, 58), (70, 74, 80)]


@dataclass(frozen=True)
class Scene:
    """A street scene with its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instance_ids: (H, W) uint16, encoding of `d2_cityscapes.labels`.
        objects: (label, integer polygon (x, y) px) in drawing order, as in Cityscapes' polygon
            files; "cargroup" and the like are regions of a class without instances.
    """

    image: np.ndarray
    instance_ids: np.ndarray
    objects: list[tuple[str, Polygon]]


def render_scene(height: int, width: int, *, rng: np.random.Generator) -> Scene:
    """Make up an (H, W) street scene; the same state of ``rng`` gives the same scene."""
    street = sample_street(height, width, rng)
    populate(street, rng)
    canvas = Canvas(street.camera, street.light, rng)
    add_sky(canvas, rng)
    add_backdrop(canvas, rng)
    add_ground(canvas, street, rng)
    add_plots(canvas, street, rng)
    _add_props(canvas, street)
    _add_frame(canvas, rng)
    canvas.drop_hidden()
    image = _expose(canvas.paint(), rng)
    return Scene(image, draw_ids(canvas.objects, (width, height)), canvas.objects)


def _add_props(canvas: Canvas, street: Street) -> None:
    for prop in back_to_front(street.props):
        for label, part in prop.parts:
            if isinstance(part, Drawing):
                canvas.add_drawing(label, part, 0.5 * (prop.z0 + prop.z1))
            else:
                canvas.add_surface(label, part)


def _add_frame(canvas: Canvas, rng: np.random.Generator) -> None:
    """The bonnet of the camera's car, the rims of a rectified picture, and its unused edge."""
    width, height = canvas.size
    rise, middle = height * rng.uniform(0.045, 0.085), width * rng.uniform(0.46, 0.54)
    xs = np.linspace(0, width - 1, 33)
    bulge = 1 - np.abs((xs - middle) / (0.56 * width)) ** rng.uniform(2.2, 3.2)
    rim = np.stack([xs, height - 1 - rise * np.clip(bulge, 0, 1)], axis=1)
    color, sky = column(pick(rng, _HOODS)), column(canvas.light.haze)

    top = round(rim[:, 1].min())
    down = np.linspace(0.34, 0.04, height - top, dtype=np.float32)
    across = 0.75 + 0.25 * np.cos(np.linspace(-3, 3, width, dtype=np.float32))

    def hood(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return color + down[y - top] * across[x] * (sky - color)

    def black(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.full((3, len(x)), 4.0, dtype=np.float32)

    corners = np.array([(width - 1, height - 1), (0, height - 1)])
    canvas.add_surface("ego vehicle", np.concatenate([rim, corners]), hood)
    edge = max(1, height // 200)
    if rng.random() < 0.9:
        for x0, x1 in ((0, edge), (width - 1 - edge, width - 1)):
            side = np.array([(x0, 0), (x1, 0), (x1, height - 1), (x0, height - 1)])
            canvas.add_surface("rectification border", side, black)
    unused = np.array([(0, 0), (width - 1, 0), (width - 1, edge), (0, edge)])
    canvas.add_surface("out of roi", unused)


def _expose(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: exposure, colour cast, darker corners and sensor noise.

    ``image``, (3, H, W) float32, is used up.
    """
    _, height, width = image.shape
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    gain = np.float32(rng.uniform(0.92, 1.18)) * (1 - 0.1 * (x**2 + 0.5 * y**2))
    image *= gain
    image *= column(rng.uniform(0.97, 1.03, 3))[..., None]
    image += 2.2 * rng.standard_normal((height, width), dtype=np.float32)
    np.clip(image, 0, 255, out=image)
    return np.stack(list(image.astype(np.uint8)), axis=-1)
