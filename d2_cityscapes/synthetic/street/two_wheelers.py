"""Bicycles, motorcycles and their riders."""

from __future__ import annotations

import math

import numpy as np

from d2_cityscapes.synthetic.street.camera import Camera, Light
from d2_cityscapes.synthetic.street.colors import Color, vary
from d2_cityscapes.synthetic.street.people import (
    CLOTHES,
    PAINT,
    SKIN,
    TROUSERS,
    Figure,
    Place,
    Point,
    paint_head,
)
from d2_cityscapes.synthetic.street.sprites import Drawing

__all__ = ["bicycle", "motorcycle", "rider"]

_JACKETS: list[Color] = [(240, 214, 50), (250, 132, 36), (196, 226, 60), (244, 92, 48)]
_TYRE: Color = (24, 24, 26)
_METAL: Color = (150, 152, 156)
_LEATHER: Color = (30, 27, 26)
_TAIL: Color = (218, 38, 36)
_HEADLAMP: Color = (252, 248, 226)


def _wheel(fig: Figure, hub: Point, radius: float, tyre: float, *, spokes: bool) -> None:
    """A wheel in the plane along the heading; one sees through between spokes."""
    narrow = max(abs(fig.along), 0.12)
    fig.oval(hub, radius * narrow + tyre / 2, radius, _TYRE)
    inner = radius - tyre
    if inner * narrow > tyre / 2:
        if spokes:
            fig.oval(hub, inner * narrow, inner, (150, 152, 154), alpha=170)
            for turn in range(4):
                a, b = inner * math.cos(turn * 0.785 + 0.3), inner * math.sin(turn * 0.785 + 0.3)
                ends = [(hub[0] + s * a, hub[1], hub[2] + s * b) for s in (-1, 1)]
                fig.stroke(ends, 0.018, (165, 166, 170))
        else:
            fig.oval(hub, inner * narrow, inner, (96, 98, 102))
            fig.oval(hub, inner * 0.55 * narrow, inner * 0.55, (48, 49, 52))
    fig.oval(hub, 0.05 * narrow + 0.02, 0.05, _METAL)


def bicycle(camera: Camera, light: Light, place: Place, rng: np.random.Generator) -> Drawing:
    """A bicycle with its wheels, frame, handlebar and saddle, often a luggage rack."""
    color, tube = vary(rng, PAINT), 0.05
    drawing = Drawing((96, 98, 100), grain=0.03)
    fig = Figure(drawing, camera, light, place)
    rear, front = (-0.52, 0.0, 0.34), (0.56, 0.0, 0.34)
    crank, seat, head = (-0.08, 0.0, 0.3), (-0.22, 0.0, 0.86), (0.4, 0.0, 0.88)
    _wheel(fig, rear, 0.345, 0.055, spokes=True)
    _wheel(fig, front, 0.345, 0.055, spokes=True)
    fig.stroke([rear, crank, head], tube, color)
    fig.stroke([rear, seat, crank], 0.8 * tube, color, 0.9)
    low_entry = rng.random() < 0.4
    fig.stroke([(-0.16, 0.0, 0.55) if low_entry else seat, head], tube, color, 1.1)
    fig.stroke([front, head, (0.36, 0.0, 1.02)], tube, color)
    fig.stroke([(0.38, -0.28, 1.02), (0.36, 0.0, 1.03), (0.38, 0.28, 1.02)], 0.045, (40, 40, 42))
    fig.stroke([seat, (-0.25, 0.0, 0.96)], 0.04, _METAL)
    fig.stroke([(-0.38, 0.0, 0.98), (-0.14, 0.0, 0.97)], 0.085, _LEATHER)
    fig.oval((-0.25, 0.0, 0.97), 0.08, 0.045, _LEATHER)
    fig.oval(crank, 0.09 * max(abs(fig.along), 0.3), 0.09, _METAL, 0.7)
    if fig.across > 0.3:
        fig.oval((-0.85, 0.0, 0.62), 0.045, 0.045, _TAIL)
    elif fig.across < -0.3:
        fig.oval((0.6, 0.0, 0.86), 0.055, 0.055, _HEADLAMP, 1.15)
    if rng.random() < 0.4:
        fig.stroke([(-0.8, 0.0, 0.74), (-0.3, 0.0, 0.74)], 0.045, (60, 60, 62))
        if rng.random() < 0.5:
            box = vary(rng, [(120, 92, 58), (46, 46, 50), (150, 60, 50)])
            fig.stroke([(-0.68, 0.0, 0.86), (-0.44, 0.0, 0.86)], 0.22, box)
    return drawing


def motorcycle(camera: Camera, light: Light, place: Place, rng: np.random.Generator) -> Drawing:
    """A motorcycle or a scooter: fat tyres, tank, engine, exhaust, lamps."""
    color = vary(rng, [*PAINT, (200, 30, 30), (220, 220, 216)])
    drawing = Drawing((52, 52, 56), relief=0.35, grain=0.03)
    fig = Figure(drawing, camera, light, place)
    scooter, dark = rng.random() < 0.35, (44, 44, 48)
    radius = 0.25 if scooter else 0.32
    front = (0.68, 0.0, radius)
    _wheel(fig, (-0.62, 0.0, radius), radius, 0.16, spokes=False)
    _wheel(fig, front, radius, 0.13, spokes=False)
    fig.stroke([front, (0.42, 0.0, 0.92)], 0.1, _METAL, 0.8)
    if scooter:
        fig.stroke([(-0.75, 0.0, 0.55), (-0.2, 0.0, 0.5)], [0.34, 0.38], color)
        fig.stroke([(-0.25, 0.0, 0.3), (0.3, 0.0, 0.28)], 0.16, dark)
        fig.stroke([(0.36, 0.0, 0.3), (0.46, 0.0, 0.95)], 0.22, color, 1.1)
        fig.stroke([(0.62, 0.0, 0.52), (0.78, 0.0, 0.5)], 0.12, color)
        fig.stroke([(-0.7, 0.0, 0.76), (-0.1, 0.0, 0.74)], 0.12, _LEATHER)
    else:
        fig.stroke([(-0.3, 0.0, 0.42), (0.26, 0.0, 0.4)], 0.36, dark)
        fig.oval((-0.02, 0.0, 0.42), 0.16 * max(abs(fig.along), 0.5), 0.15, _METAL, 0.75)
        fig.stroke([(-0.1, 0.12, 0.3), (-0.85, 0.14, 0.36)], [0.08, 0.12], _METAL, 1.05)
        fig.stroke([(-0.06, 0.0, 0.78), (0.32, 0.0, 0.8)], [0.24, 0.3], color)
        bench = [(-0.86, 0.0, 0.86), (-0.5, 0.0, 0.8), (-0.12, 0.0, 0.76)]
        fig.stroke(bench, [0.1, 0.15, 0.16], _LEATHER)
        fig.stroke([(-0.92, 0.0, 0.74), (-0.5, 0.0, 0.7)], [0.1, 0.16], color, 0.9)
        fig.stroke([(0.5, 0.0, 0.66), (0.88, 0.0, 0.58)], [0.1, 0.06], color)
    fig.stroke([(0.32, -0.36, 1.04), (0.4, 0.0, 1.0), (0.32, 0.36, 1.04)], 0.06, dark)
    fig.oval((0.5, 0.0, 0.92), 0.1, 0.12, color if rng.random() < 0.5 else dark)
    if fig.across < -0.2:
        fig.oval((0.52, 0.0, 0.92), 0.085, 0.09, _HEADLAMP, 1.2)
    elif fig.across > 0.2:
        fig.oval((-0.9, 0.0, 0.78), 0.09, 0.05, _TAIL, 1.15)
        corners = ((-0.1, 0.66), (0.1, 0.66), (0.1, 0.52), (-0.1, 0.52))
        fig.patch([(-0.9, across, up) for across, up in corners], (226, 226, 220))
    else:
        fig.oval((-0.92, 0.0, 0.8), 0.05, 0.045, _TAIL, 1.15)
        fig.oval((0.58, 0.0, 0.92), 0.05, 0.085, _HEADLAMP, 1.15)
    return drawing


def rider(
    camera: Camera, light: Light, place: Place, rng: np.random.Generator, *, on: str
) -> Drawing:
    """Someone on a "bicycle" or "motorcycle" that stands at the same place."""
    top, trousers = vary(rng, _JACKETS), vary(rng, TROUSERS)
    drawing = Drawing(top, relief=0.6, grain=0.05)
    fig = Figure(drawing, camera, light, place)
    far = 1 if fig.along > 0 else -1
    motor = on == "motorcycle"
    # joints as (along, up); the right side's pedal is half a turn ahead of the left side's
    if motor:
        hip, shoulder, neck = (-0.3, 0.92), (-0.08, 1.4), (-0.04, 1.46)
        knees = {1: (0.22, 0.74), -1: (0.22, 0.74)}
        feet = {1: (0.05, 0.34), -1: (0.05, 0.34)}
        hand_along, hand_across, leg_across = 0.3, 0.34, 0.17
    else:
        lean = rng.uniform(0.12, 0.38)
        hip, shoulder = (-0.24, 1.04), (lean - 0.24, 1.53 - 0.25 * lean)
        neck = (shoulder[0] + 0.05, shoulder[1] + 0.07)
        turn, knees, feet = rng.uniform(0, 2 * math.pi), {}, {}
        for side in (1, -1):
            reach, rise = 0.17 * side * math.cos(turn), 0.17 * side * math.sin(turn)
            feet[side] = (reach - 0.08, rise + 0.34)
            knees[side] = (0.5 * (hip[0] + reach - 0.08) + 0.24, 0.5 * (hip[1] + rise + 0.3) + 0.1)
        hand_along, hand_across, leg_across = 0.36, 0.26, 0.1

    def leg(side: int) -> None:
        across, shade = leg_across * side, 0.82 if side == far else 1.0
        (knee, knee_up), (foot, foot_up) = knees[side], feet[side]
        chain = [
            (hip[0], 0.08 * side, hip[1]),
            (knee, 1.25 * across, knee_up),
            (foot, across, foot_up),
        ]
        fig.stroke(chain, [0.2, 0.15, 0.1], trousers, shade)
        toe = (foot + 0.17, across, foot_up - 0.03)
        fig.stroke([(foot - 0.06, across, foot_up), toe], 0.1, (34, 32, 32), shade)

    def arm(side: int) -> None:
        hand = (hand_along, hand_across * side, 1.06)
        elbow = (0.5 * (shoulder[0] + hand_along), 0.27 * side, 0.5 * shoulder[1] + 0.47)
        chain = [(shoulder[0], 0.2 * side, shoulder[1] - 0.03), elbow, hand]
        fig.stroke(chain, [0.13, 0.11, 0.09], top, 0.82 if side == far else 0.95)
        fig.oval(hand, 0.05, 0.055, _LEATHER if motor else SKIN[0])

    leg(far)
    arm(far)
    if rng.random() < 0.3:  # backpack
        pack = [(shoulder[0] - 0.2, 0.0, shoulder[1] - 0.1), (hip[0] - 0.12, 0.0, hip[1] + 0.2)]
        fig.stroke(pack, 0.24, vary(rng, CLOTHES), 0.85)
    half = 0.13 + 0.07 * abs(fig.across)
    spine = [(hip[0], 0.0, hip[1] + 0.02), (shoulder[0], 0.0, shoulder[1] - 0.06)]
    fig.stroke(spine, [1.75 * half, 2.05 * half], top)
    fig.stroke([(hip[0], -0.06, hip[1] - 0.02), (hip[0], 0.06, hip[1] - 0.02)], 0.24, trousers)
    leg(-far)
    arm(-far)
    paint_head(fig, rng, (neck[0], 0.0, neck[1]), helmet=motor or rng.random() < 0.7)
    return drawing
