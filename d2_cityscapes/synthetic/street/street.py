"""The plan of a made-up street: camera, daylight, lanes, kerbs, plots; and the things in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.sprites import Drawing, Points

__all__ = ["LANE", "Part", "Plot", "Prop", "Side", "Street", "back_to_front", "sample_street"]

LANE = 3.3  # m
_STREET_END = 200.0  # m

Part = tuple[str, Drawing | Points]
"""Label of one polygon of the truth, and its drawing or its bare outline (x, y) px."""


@dataclass
class Prop:
    """Something upright on the ground.

    Attributes:
        parts: back to front.
        x0, x1, z0, z1: footprint, m. height: m.
        shadow: whether it darkens the ground.
    """

    parts: list[Part]
    x0: float
    x1: float
    z0: float
    z1: float
    height: float
    shadow: bool = True


@dataclass(frozen=True)
class Plot:
    """A piece of land beside the street from z0 to z1 whose front is at x; a house or a garden."""

    x: float
    z0: float
    z1: float
    storeys: int  # 0: a garden


@dataclass(frozen=True)
class Side:
    """One side of the street; all x in metres.

    Attributes:
        outward: -1 left, 1 right.
        kerb: where the road ends. walk: inner and outer edge of the sidewalk.
        parking: whether cars park along the kerb.
        grass: whether the land behind the sidewalk is grass, not paved.
        plots: from far to near.
    """

    outward: int
    kerb: float
    walk: tuple[float, float]
    parking: bool
    grass: bool
    plots: tuple[Plot, ...]

    @property
    def verge(self) -> tuple[float, float] | None:
        """Left and right edge of the strip of grass between road and sidewalk, if there is one."""
        if self.kerb == self.walk[0]:
            return None
        return min(self.kerb, self.walk[0]), max(self.kerb, self.walk[0])


@dataclass
class Street:
    """A street that runs straight away from the camera.

    Attributes:
        lanes: (x of the middle, heading), left to right; 0 drives away from us, pi towards us.
        sides: left and right.
        crossing: z0, z1 of a cross street, or None.
        rails: x of a tram track's middle, or None.
        busy: factor on the number of pedestrians.
        props: what stands in the street.
    """

    camera: Camera
    light: Light
    lanes: list[tuple[float, float]]
    sides: tuple[Side, Side]
    crossing: tuple[float, float] | None
    rails: float | None
    busy: float
    props: list[Prop] = field(default_factory=list)

    @property
    def road(self) -> tuple[float, float]:
        """x of the left and the right kerb."""
        return self.sides[0].kerb, self.sides[1].kerb

    def in_crossing(self, z: float, margin: float) -> bool:
        """Whether depth z lies in the cross street or less than ``margin`` from it."""
        return (
            self.crossing is not None
            and self.crossing[0] - margin <= z <= self.crossing[1] + margin
        )


def _sample_light(rng: np.random.Generator) -> Light:
    clear = rng.uniform(0, 1) ** 0.8
    azimuth, elevation = rng.uniform(-math.pi, math.pi), rng.uniform(0.35, 1.1)
    flat = math.cos(elevation)
    sun = (flat * math.sin(azimuth), math.sin(elevation), flat * math.cos(azimuth))
    warm, gray = rng.uniform(-1, 1), rng.uniform(200, 230)
    haze = (gray + 8 * warm + 4, gray + 2, gray - 8 * warm + 6 * clear)
    blue = (96 + 30 * rng.uniform(), 142 + 22 * rng.uniform(), 206 + 14 * rng.uniform())
    dull = (182 + 12 * warm, 188, 198 - 8 * warm)
    red, green, violet = (d + clear * (b - d) for d, b in zip(dull, blue, strict=True))
    return Light(sun, clear, haze, rng.uniform(260, 700), (red, green, violet))


def _sample_plots(
    x: float, crossing: tuple[float, float] | None, rng: np.random.Generator
) -> tuple[Plot, ...]:
    built = rng.choice([0.9, 0.6, 0.3])
    plots, z = [], rng.uniform(-4, 6)
    while z < _STREET_END:
        length = rng.uniform(9, 26)
        open_land = crossing and z + length > crossing[0] - 2 and z < crossing[1] + 2
        if z + length > 2.5 and not open_land:
            storeys = int(rng.integers(1, 6)) if rng.random() < built else 0
            plots.append(Plot(x, max(z, 1.2), z + length, storeys))
        z += length
    return tuple(reversed(plots))


def sample_street(height: int, width: int, rng: np.random.Generator) -> Street:
    """Draw up an empty street for an (H, W) picture."""
    camera = Camera(
        height=height,
        width=width,
        focal=2.2 * height,
        center_x=width * rng.uniform(0.38, 0.62),
        horizon=height * rng.uniform(0.4, 0.46),
        elevation=rng.uniform(1.6, 2.2),
    )
    light = _sample_light(rng)
    own = rng.uniform(-0.4, 0.4)
    left, right = int(rng.integers(1, 3)), int(rng.random() < 0.35)
    lanes = [(own + LANE * i, math.pi if i < 0 else 0.0) for i in range(-left, right + 1)]
    start = rng.uniform(14, 42)
    crossing = (start, start + rng.uniform(7, 11)) if rng.random() < 0.45 else None
    sides = []
    for outward, count in ((-1, left), (1, right)):
        parking = rng.random() < 0.55
        kerb = own + outward * (LANE * count + LANE / 2 + 0.3 + 2.2 * parking)
        inner = kerb + outward * rng.uniform(1.5, 5.0) if rng.random() < 0.35 else kerb
        outer = inner + outward * rng.uniform(2.2, 4.8)
        plots = _sample_plots(outer + outward * rng.uniform(0.2, 1.2), crossing, rng)
        sides.append(Side(outward, kerb, (inner, outer), parking, rng.random() < 0.6, plots))
    rails = own - LANE if rng.random() < 0.42 else None  # the tram runs in the lane left of ours
    busy = float(rng.choice([0.5, 1.0, 1.7], p=[0.3, 0.45, 0.25]))
    return Street(camera, light, lanes, (sides[0], sides[1]), crossing, rails, busy)


def back_to_front(props: list[Prop]) -> list[Prop]:
    """The order in which props have to be painted.

    Of two props one behind the other the farther comes first; of two side by side, seen from the
    middle of the street, the one farther out.
    """

    def behind(a: Prop, b: Prop) -> bool:
        if a.z0 >= b.z1:
            return True
        if b.z0 >= a.z1:
            return False
        return min(abs(a.x0), abs(a.x1)) > min(abs(b.x0), abs(b.x1))

    waiting = sorted(props, key=lambda p: -(p.z0 + p.z1))
    ordered: list[Prop] = []
    while waiting:
        hindmost = (
            p for p in waiting if not any(behind(other, p) for other in waiting if other is not p)
        )
        prop = next(hindmost, waiting[0])  # in a circle no order is right
        waiting.remove(prop)
        ordered.append(prop)
    return ordered
