"""Lorries, buses, trams, caravans and trailers; and the table of all vehicles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from d2_cityscapes.synthetic.street.cars import GLASS, PAINTS, car
from d2_cityscapes.synthetic.street.colors import Color, mix, pick, vary
from d2_cityscapes.synthetic.street.solids import LAMP, PLATE, RED, Face, Model, Solid, box

__all__ = ["VEHICLES"]

_CARGO: list[Color] = [
    (228, 228, 224), (200, 204, 208), (46, 92, 168), (60, 120, 84)
]  # fmt: skip
_STRIPES: list[Color] = [
    (150, 30, 34), (30, 60, 120), (240, 240, 236), (36, 120, 80), (235, 150, 30)
]  # fmt: skip
_BUSES: list[Color] = [(232, 190, 32), (240, 166, 40)]
_TRAMS: list[Color] = [(196, 32, 40), (214, 52, 40)]
_PALE: Color = (240, 240, 236)
_DARK_GLASS: Color = (42, 50, 58)


def truck(rng: np.random.Generator) -> Model:
    """A lorry: a cab and a taller cargo box on a chassis."""
    length, width, top = rng.uniform(7.0, 9.5), 2.45, rng.uniform(3.1, 3.7)
    half = length / 2
    cab_rear = half - 2.1
    profile = [
        (cab_rear, 0.5), (cab_rear, 2.7), (half - 0.5, 2.75), (half - 0.08, 1.75), (half, 1.5),
        (half, 0.5),
    ]  # fmt: skip
    cab = Solid(profile, width * 0.96, pick(rng, PAINTS))
    window = [(half - 1.4, 1.6), (half - 1.4, 2.4), (half - 0.65, 2.4), (half - 0.3, 1.6)]
    cab.on_sides(window, GLASS)
    cab.strips[2].mark(0.05, 0.95, 0.1, 0.95, GLASS)
    front = cab.strips[4]
    front.mark(0.2, 0.8, 0.15, 0.55, (38, 38, 42))
    front.mark(0.0, 1.0, 0.84, 1.0, (60, 60, 62))
    for left in (0.04, 0.82):
        front.mark(left, left + 0.14, 0.62, 0.78, LAMP)

    color = vary(rng, _CARGO)
    cargo = Solid(box(-half, cab_rear - 0.25, 0.95, top), width, color)
    if rng.random() < 0.6:
        low = rng.uniform(1.4, 1.9)
        stripe = pick(rng, _STRIPES)
        cargo.panel(-half + 0.4, cab_rear - 0.6, low, low + rng.uniform(0.4, 1.0), stripe)
    for rib in np.arange(-half + 0.9, cab_rear - 0.5, 0.9).tolist():
        cargo.panel(rib, rib + 0.05, 0.97, top - 0.05, mix(color, (20, 20, 20), 0.25))
    rear = cargo.strips[0]
    for left, right in ((0.03, 0.49), (0.51, 0.97)):
        rear.mark(left, right, 0.03, 0.97, mix(color, (30, 30, 30), 0.14))
    for left in (0.44, 0.54):
        rear.mark(left, left + 0.02, 0.1, 0.9, (70, 70, 72))

    chassis = Solid(box(-half + 0.1, half - 0.3, 0.42, 0.95), width * 0.9, (44, 44, 47))
    for left, right in ((0.02, 0.2), (0.8, 0.98)):
        chassis.strips[0].mark(left, right, 0.5, 0.9, RED)
    plate = chassis.strips[0].mark(0.4, 0.6, 0.3, 0.7, PLATE)
    wheels = [(-half + 1.3, 0.5), (-half + 2.45, 0.5), (half - 1.3, 0.5)]
    return Model(length, width, top, color, [chassis, cargo, cab], wheels, plate)


def bus(rng: np.random.Generator) -> Model:
    """A city bus: one long box with large windows, doors, wheels and a destination sign."""
    length, width, top = rng.uniform(10.5, 12.5), 2.55, 3.1
    half, color = length / 2, vary(rng, _BUSES, 6)
    profile = [
        (-half, 0.32), (-half, top - 0.1), (-half + 0.15, top), (half - 0.3, top),
        (half, top - 0.25), (half, 0.32),
    ]  # fmt: skip
    body = Solid(profile, width, color)
    for edge in np.arange(-half + 0.5, half - 0.9, 1.45).tolist():
        body.panel(edge, min(edge + 1.33, half - 0.4), 1.35, 2.5, _DARK_GLASS)
    for door in (half - 1.6, 0.2):
        body.on_sides(box(door, door + 1.2, 0.4, 2.5), (58, 66, 74), only=1)
    accent = mix(color, _PALE if rng.random() < 0.5 else (30, 40, 70), 0.75)
    body.panel(-half + 0.05, half - 0.05, 0.75, 0.95, accent)
    rear, front = body.strips[0], body.strips[4]
    rear.mark(0.1, 0.9, 0.52, 0.86, _DARK_GLASS)
    rear.mark(0.15, 0.85, 0.08, 0.34, mix(color, (20, 20, 20), 0.5))
    front.mark(0.04, 0.96, 0.14, 0.62, _DARK_GLASS)
    front.mark(0.2, 0.8, 0.02, 0.12, (24, 22, 20))
    front.mark(0.26, 0.74, 0.04, 0.1, (246, 160, 40))
    for left in (0.03, 0.83):
        rear.mark(left, left + 0.12, 0.2, 0.45, RED)
        front.mark(left, left + 0.14, 0.8, 0.9, LAMP)
    plate = rear.mark(0.4, 0.6, 0.36, 0.43, PLATE)
    under = Solid(box(-half + 0.2, half - 0.2, 0.18, 0.36), width * 0.92, (24, 24, 26))
    wheels = [(-half + 3.0, 0.48), (half - 2.6, 0.48)]
    return Model(length, width, top, color, [under, body], wheels, plate)


def train(rng: np.random.Generator) -> Model:
    """A tram: long articulated cars without visible wheels, a window band, a current collector."""
    count, part, joint, width, top = int(rng.integers(2, 4)), 8.6, 0.6, 2.5, 3.45
    length = count * part + (count - 1) * joint
    color = vary(rng, _TRAMS, 6)
    second = mix(color, _PALE if rng.random() < 0.6 else (40, 44, 52), 0.8)
    solids = []
    for index in range(count):
        rear = -length / 2 + index * (part + joint)
        front = rear + part
        back_nose, front_nose = 0.7 * (index == 0), 0.7 * (index == count - 1)
        profile = [
            (rear, 0.22), (rear, 1.5), (rear + back_nose, top - 0.2), (rear + back_nose + 0.2, top),
            (front - front_nose - 0.2, top), (front - front_nose, top - 0.2), (front, 1.5),
            (front, 0.22),
        ]  # fmt: skip
        body = Solid(profile, width, color)
        body.panel(rear + 0.15 + back_nose, front - 0.15 - front_nose, 1.45, 2.75, _DARK_GLASS)
        for door in np.arange(rear + 2.0, front - 2.0, 3.1).tolist():
            body.panel(door, door + 1.2, 0.35, 2.7, (70, 78, 86))
            body.panel(door + 0.57, door + 0.63, 0.35, 2.7, (30, 32, 34))
        body.panel(rear + 0.05, front - 0.05, 0.24, 0.62, second)
        body.panel(rear + 0.9, front - 0.9, 2.85, 3.15, second)
        if back_nose:
            _cabin(body.strips[1], body.strips[0], second, RED, low=(0.0, 0.3))
        if front_nose:
            _cabin(body.strips[5], body.strips[6], second, LAMP, low=(1.0, 0.7))
        else:
            middle = box(front - 0.05, front + joint + 0.05, 0.35, top - 0.1)
            solids.append(Solid(middle, width * 0.88, (46, 46, 50)))
        solids.append(body)
    collector = [(-0.7, top), (-0.1, top + 0.9), (0.0, top + 0.9), (-0.5, top)]
    solids.append(Solid(collector, 0.8, (60, 62, 66)))
    return Model(length, width, top, color, solids)


def _cabin(
    window: Face, panel: Face, color: Color, lamp: Color, *, low: tuple[float, float]
) -> None:
    """Window, skirt and lamps of a driver's cabin; ``low`` is the skirt's place on ``panel``."""
    window.mark(0.08, 0.92, 0.06, 0.94, _DARK_GLASS)
    panel.mark(0.0, 1.0, *low, color)
    for left in (0.12, 0.74):
        panel.mark(left, left + 0.14, 0.45, 0.62, lamp)


def caravan(rng: np.random.Generator) -> Model:
    """A white camping trailer."""
    length, width, top, color = rng.uniform(4.4, 5.4), 2.2, 2.5, (230, 228, 220)
    half = length / 2
    profile = [
        (-half, 0.5), (-half, 2.2), (-half + 0.4, top), (half - 0.8, top), (half, 1.5), (half, 0.5)
    ]  # fmt: skip
    body = Solid(profile, width, color)
    body.panel(-half + 0.6, -0.4, 1.3, 1.9, GLASS)
    body.panel(0.5, half - 0.9, 1.3, 1.9, GLASS)
    body.panel(-half + 0.05, half - 0.05, 0.9, 1.0, (150, 60, 60))
    body.strips[0].mark(0.2, 0.8, 0.5, 0.85, GLASS)
    for left in (0.04, 0.84):
        body.strips[0].mark(left, left + 0.12, 0.1, 0.25, RED)
    return Model(length, width, top, color, [body], [(-0.1, 0.32)])


def trailer(rng: np.random.Generator) -> Model:
    """A small trailer under a tarpaulin."""
    length, width, top = rng.uniform(2.6, 4.2), 1.8, rng.uniform(1.2, 1.9)
    color = vary(rng, [(64, 74, 92), (120, 124, 122), (70, 96, 80)])
    half = length / 2
    body = Solid(box(-half, half, 0.5, top), width, color)
    body.panel(-half + 0.03, half - 0.03, 0.5, 0.75, (150, 152, 154))
    for left in (0.03, 0.85):
        body.strips[0].mark(left, left + 0.12, 0.04, 0.2, RED)
    return Model(length, width, top, color, [body], [(0.0, 0.3)])


VEHICLES: dict[str, Callable[[np.random.Generator], Model]] = {
    "car": car,
    "truck": truck,
    "bus": bus,
    "train": train,
    "caravan": caravan,
    "trailer": trailer,
}
