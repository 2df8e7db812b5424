"""Passenger cars."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2_cityscapes.synthetic.street.colors import Color, mix, vary
from d2_cityscapes.synthetic.street.solids import LAMP, PLATE, RED, Flat, Model, Solid, box

__all__ = ["GLASS", "PAINTS", "car"]

GLASS: Color = (52, 62, 72)
PAINTS: list[Color] = [
    (212, 214, 216), (168, 172, 176), (110, 114, 120), (58, 60, 66), (30, 31, 35), (34, 52, 104),
    (60, 96, 150), (130, 30, 36), (44, 84, 62), (178, 164, 132), (92, 54, 46), (226, 226, 224),
    (140, 160, 176), (30, 96, 116),
]  # fmt: skip


@dataclass(frozen=True)
class _Shape:
    """Side view of a car; `along` in shares of the length from -0.5 (rear) to 0.5, `up` in metres.

    Attributes:
        glass: strips of the profile that are the rear window and the windscreen.
    """

    share: float  # of all cars
    length: float
    profile: tuple[Flat, ...]
    windows: tuple[tuple[Flat, ...], ...]
    glass: tuple[int, int]
    wheel: float = 0.325


_SHAPES = {
    "hatchback": _Shape(
        0.30, 4.0,
        ((-0.5, 0.3), (-0.5, 0.82), (-0.48, 1.0), (-0.4, 1.42), (-0.3, 1.48), (0.06, 1.48),
         (0.27, 1.0), (0.44, 0.86), (0.5, 0.68), (0.5, 0.3)),
        (((-0.4, 1.0), (-0.35, 1.36), (-0.15, 1.39), (-0.15, 1.0)),
         ((-0.12, 1.0), (-0.12, 1.39), (0.05, 1.38), (0.21, 1.0))),
        (2, 5),
    ),
    "sedan": _Shape(
        0.26, 4.6,
        ((-0.5, 0.3), (-0.5, 0.86), (-0.47, 0.98), (-0.34, 1.02), (-0.2, 1.4), (-0.12, 1.45),
         (0.06, 1.45), (0.22, 0.98), (0.44, 0.84), (0.5, 0.66), (0.5, 0.3)),
        (((-0.28, 1.02), (-0.18, 1.33), (-0.06, 1.36), (-0.06, 1.0)),
         ((-0.03, 1.0), (-0.03, 1.36), (0.05, 1.36), (0.17, 1.0))),
        (3, 6),
    ),
    "estate": _Shape(
        0.20, 4.7,
        ((-0.5, 0.3), (-0.5, 0.86), (-0.49, 1.02), (-0.44, 1.44), (-0.38, 1.5), (0.06, 1.49),
         (0.23, 1.0), (0.44, 0.86), (0.5, 0.68), (0.5, 0.3)),
        (((-0.43, 1.02), (-0.4, 1.38), (-0.24, 1.4), (-0.24, 1.02)),
         ((-0.22, 1.02), (-0.22, 1.4), (-0.06, 1.4), (-0.06, 1.0)),
         ((-0.04, 1.0), (-0.04, 1.4), (0.05, 1.39), (0.18, 1.0))),
        (2, 5),
    ),
    "suv": _Shape(
        0.15, 4.5,
        ((-0.5, 0.38), (-0.5, 1.0), (-0.48, 1.14), (-0.43, 1.62), (-0.36, 1.7), (0.06, 1.69),
         (0.21, 1.16), (0.45, 1.04), (0.5, 0.84), (0.5, 0.38)),
        (((-0.42, 1.16), (-0.39, 1.56), (-0.17, 1.59), (-0.17, 1.16)),
         ((-0.14, 1.16), (-0.14, 1.59), (0.05, 1.58), (0.17, 1.16))),
        (2, 5), 0.37,
    ),
    "van": _Shape(
        0.09, 4.9,
        ((-0.5, 0.36), (-0.5, 1.1), (-0.49, 1.2), (-0.48, 1.86), (-0.45, 1.94), (0.2, 1.92),
         (0.36, 1.2), (0.47, 1.0), (0.5, 0.76), (0.5, 0.36)),
        (((0.0, 1.2), (0.0, 1.72), (0.17, 1.72), (0.3, 1.2)),
         ((-0.44, 1.22), (-0.44, 1.74), (-0.04, 1.74), (-0.04, 1.22))),
        (2, 5), 0.36,
    ),
}  # fmt: skip


def car(rng: np.random.Generator) -> Model:
    """A hatchback, saloon, estate, off-roader or small van."""
    shares = [s.share for s in _SHAPES.values()]
    shape = list(_SHAPES.values())[int(rng.choice(len(_SHAPES), p=shares))]
    length = shape.length * rng.uniform(0.95, 1.05)
    width = (1.74 + 0.09 * (shape.length - 4.0)) * rng.uniform(0.98, 1.05)
    color = vary(rng, PAINTS, 12)
    height = max(up for _, up in shape.profile)
    rear_glass, front_glass = shape.glass
    belt = shape.profile[rear_glass][1] - 0.05

    def taper(up: float) -> float:
        if up < 0.5:
            return 0.95 + 0.1 * up
        return 1.0 if up <= belt else 1.0 - 0.22 * (up - belt) / (height - belt)

    def scaled(points: tuple[Flat, ...]) -> list[Flat]:
        return [(along * length, up) for along, up in points]

    body = Solid(scaled(shape.profile), width, color, taper)
    glass = mix(GLASS, (120, 140, 160), rng.uniform(0, 0.25))
    dark = mix(color, (20, 20, 22), 0.55)
    for window in shape.windows:
        body.on_sides(scaled(window), glass)
    body.panel(-0.01 * length, 0.0, 0.42, belt, dark)  # gap of the door
    body.panel(-0.12 * length, -0.06 * length, belt - 0.16, belt - 0.12, dark)  # door handle
    body.panel(-0.5 * length, 0.5 * length, 0.3, 0.4, dark)
    lamp = ((-0.5, belt - 0.28), (-0.5, belt - 0.1), (-0.45, belt - 0.1), (-0.47, belt - 0.28))
    body.on_sides(scaled(lamp), RED)
    body.on_sides(scaled(((0.5, 0.56), (0.49, 0.7), (0.43, 0.78), (0.44, 0.6))), LAMP)
    for index in (rear_glass, front_glass):
        body.strips[index].mark(0.06, 0.94, 0.06, 0.94, glass)
        body.strips[index].mark(0.1, 0.5, 0.45, 0.9, mix(glass, (190, 205, 215), 0.22))
    rear, front = body.strips[0], body.strips[-2]
    rear.mark(0.0, 1.0, 0.0, 0.28, dark)
    front.mark(0.24, 0.76, 0.08, 0.38, (34, 34, 37))
    front.mark(0.0, 1.0, 0.72, 1.0, dark)
    for left, right in ((0.02, 0.2), (0.8, 0.98)):
        rear.mark(left, right, 0.62, 0.97, RED)
        front.mark(left + 0.01, right - 0.01, 0.02, 0.3, LAMP)
    plate = rear.mark(0.36, 0.64, 0.36, 0.54, PLATE)
    front.mark(0.36, 0.64, 0.5, 0.68, PLATE)
    under = Solid(box(-0.46 * length, 0.46 * length, 0.15, 0.36), width * 0.94, (22, 22, 24))
    wheels = [(-0.3 * length, shape.wheel), (0.31 * length, shape.wheel)]
    return Model(length, width, height, color, [under, body], wheels, plate)
