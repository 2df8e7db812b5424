"""Fills a street with vehicles, people and street furniture."""

from __future__ import annotations

import math

import numpy as np

from d2_cityscapes.synthetic.street.colors import coin, pick
from d2_cityscapes.synthetic.street.furniture import FURNITURE
from d2_cityscapes.synthetic.street.people import person
from d2_cityscapes.synthetic.street.solids import paint_model
from d2_cityscapes.synthetic.street.sprites import Drawing
from d2_cityscapes.synthetic.street.street import Part, Prop, Street
from d2_cityscapes.synthetic.street.two_wheelers import bicycle, motorcycle, rider
from d2_cityscapes.synthetic.street.vehicles import VEHICLES

__all__ = ["populate"]

_FAR = 200.0  # m: no traffic beyond
_TWO_WHEELERS = {"bicycle": bicycle, "motorcycle": motorcycle}
_PLATE_HEIGHT = 5  # px: smaller number plates are not annotated


def populate(street: Street, rng: np.random.Generator) -> None:
    """Add props to a street: rare things first, while there is room."""
    put = _Placer(street, rng)
    _add_large_vehicles(street, put, rng)
    _add_two_wheelers(street, put, rng)
    _add_cars(street, put, rng)
    _add_pedestrians(street, put, rng)
    _add_group(street, put, rng)
    _add_furniture(street, put, rng)


class _Placer:
    """Puts props where nothing stands yet and something of them is in the picture."""

    def __init__(self, street: Street, rng: np.random.Generator) -> None:
        self.street, self.rng = street, rng
        self.camera, self.light = street.camera, street.light

    def free(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        scale = self.camera.scale(z)
        column, reach = self.camera.center_x + x * scale, 0.6 * half_x * scale
        if column + reach < 0 or column - reach > self.camera.width:
            return False
        return all(
            x + half_x <= p.x0 or x - half_x >= p.x1 or z + half_z <= p.z0 or z - half_z >= p.z1
            for p in self.street.props
        )

    def add(
        self,
        parts: list[Part],
        x: float,
        z: float,
        half: tuple[float, float],
        height: float,
        *,
        shadow: bool = True,
    ) -> None:
        """Add a prop around (x, z); ``half`` is half its footprint along x and z."""
        bounds = x - half[0], x + half[0], z - half[1], z + half[1]
        self.street.props.append(Prop(parts, *bounds, height, shadow))

    def vehicle(self, label: str, x: float, z: float, yaw: float) -> bool:
        """Put a vehicle with its middle at (x, z); False where there is no room."""
        model = VEHICLES[label](self.rng)
        sin, cos = abs(math.sin(yaw)), abs(math.cos(yaw))
        half_x = (sin * model.length + cos * model.width) / 2
        half_z = (cos * model.length + sin * model.width) / 2
        nearest = 4.5 if abs(x) - half_x < 1.6 else 1.0  # not on top of the camera
        if z - half_z < nearest or not self.free(x, z, half_x + 0.15, half_z + 0.4):
            return False
        drawing, plate = paint_model(model, self.camera, self.light, x, z, yaw)
        parts: list[Part] = [(label, drawing)]
        if len(plate) >= 3 and np.ptp([y for _, y in plate]) >= _PLATE_HEIGHT:
            parts.append(("license plate", plate))
        self.add(parts, x, z, (half_x, half_z), model.height)
        return True

    def walker(self, x: float, z: float, yaw: float) -> bool:
        if not self.free(x, z, 0.3, 0.25):
            return False
        drawing, height = person(self.camera, self.light, (x, z, yaw), self.rng)
        self.add([("person", drawing)], x, z, (0.28, 0.2), height)
        return True

    def two_wheeler(self, kind: str, x: float, z: float, yaw: float, *, ridden: bool) -> None:
        half = 0.3 + 0.65 * abs(math.sin(yaw))
        if not self.free(x, z, half, 0.5):
            return
        place = (x, z, yaw)
        parts: list[Part] = [(kind, _TWO_WHEELERS[kind](self.camera, self.light, place, self.rng))]
        if ridden:
            parts.append(("rider", rider(self.camera, self.light, place, self.rng, on=kind)))
        self.add(parts, x, z, (half, 0.45), 1.8 if ridden else 1.0)

    def furniture(self, kind: str, x: float, z: float) -> None:
        if self.free(x, z, 0.6, 1.5):
            parts = FURNITURE[kind](self.camera, self.light, x, z, self.rng)
            self.add(list(parts), x, z, (0.15, 0.15), 1.0, shadow=kind != "tree")

    def depth(self, near: float, far: float) -> float:
        """A depth (m); every ratio of sizes is equally likely."""
        return math.exp(self.rng.uniform(math.log(near), math.log(far)))


def _add_large_vehicles(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    if street.rails is not None:
        put.vehicle("train", street.rails, put.depth(26, 130), pick(rng, (0.0, math.pi)))
    lanes = [lane for lane in street.lanes if lane[0] != street.rails]
    for label, chance in (("truck", 0.5), ("bus", 0.48), ("caravan", 0.02), ("trailer", 0.03)):
        for _ in range(4 if rng.random() < chance else 0):
            if street.crossing and rng.random() < 0.3:
                x, yaw = rng.uniform(-9, 9), coin(rng) * math.pi / 2
                z = rng.uniform(street.crossing[0] + 1.5, street.crossing[1] - 1.5)
            else:
                (x, yaw), z = pick(rng, lanes), put.depth(18, 130)
            if put.vehicle(label, x, z, yaw):
                break


def _add_two_wheelers(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    for kind, chance, most in (("bicycle", 0.55, 2), ("motorcycle", 0.4, 2)):
        for _ in range(int(rng.integers(1, most + 1)) if rng.random() < chance else 0):
            if street.crossing and rng.random() < 0.3:
                x, z = rng.uniform(-8, 8), rng.uniform(*street.crossing)
                yaw = coin(rng) * math.pi / 2
            else:
                side = street.sides[int(rng.random() < 0.6)]
                x = side.kerb - side.outward * (2.9 if side.parking else 0.7)
                z = put.depth(9, 80)
                yaw = (0.0 if side.outward > 0 else math.pi) + rng.uniform(-0.9, 0.9)
            put.two_wheeler(kind, x, z, yaw, ridden=True)
    for kind, chance in (("bicycle", 0.45), ("motorcycle", 0.35)):  # parked
        if rng.random() < chance:
            side, z = pick(rng, street.sides), put.depth(9, 55)
            x = side.kerb + side.outward * rng.uniform(0.6, 1.4)
            for index in range(int(rng.integers(1, 3))):
                yaw = side.outward * math.pi / 2 + rng.uniform(-0.8, 0.8)
                put.two_wheeler(kind, x, z + 1.3 * index, yaw, ridden=False)


def _add_cars(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    for lane, yaw in street.lanes:
        z = rng.uniform(13, 50)
        while z < _FAR:
            if lane != street.rails or rng.random() < 0.3:
                put.vehicle("car", lane + rng.normal(0, 0.2), z, yaw + rng.normal(0, 0.04))
            z += rng.exponential(24) + 9
    for side in street.sides:
        x, z = side.kerb - side.outward * 1.15, rng.uniform(5, 20)
        while side.parking and z < 140:
            if rng.random() < 0.3 and not street.in_crossing(z, 4):
                heading = 0.0 if (side.outward > 0) != (rng.random() < 0.15) else math.pi
                put.vehicle("car", x + rng.normal(0, 0.1), z, heading + rng.normal(0, 0.05))
            z += rng.uniform(5.4, 7.4)
    if street.crossing:
        for _ in range(int(rng.integers(0, 4))):
            z = rng.uniform(street.crossing[0] + 1.2, street.crossing[1] - 1.2)
            yaw = coin(rng) * math.pi / 2 + rng.normal(0, 0.25)
            put.vehicle("car", rng.uniform(-14, 14), z, yaw)
    if rng.random() < 0.75:  # another cross street, far away
        z = rng.uniform(60, 120)
        for _ in range(int(rng.integers(2, 7))):
            put.vehicle("car", rng.uniform(-25, 25), z, coin(rng) * math.pi / 2)


def _add_pedestrians(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    for _ in range(int(rng.poisson(17 * street.busy))):
        side = pick(rng, street.sides)
        x, z = rng.uniform(min(side.walk), max(side.walk)), put.depth(9, 190)
        yaw = pick(rng, (0.0, math.pi)) + rng.normal(0, 0.5)
        if put.walker(x, z, yaw) and rng.random() < 0.3:
            put.walker(x + coin(rng) * rng.uniform(0.45, 0.7), z + rng.uniform(-0.4, 0.4), yaw)
    if street.crossing and rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 4))):
            z = street.crossing[0] - rng.uniform(1.2, 4.0)
            yaw = coin(rng) * math.pi / 2 + rng.normal(0, 0.15)
            put.walker(rng.uniform(*street.road), z, yaw)
    elif rng.random() < 0.2:
        put.walker(rng.uniform(*street.road), put.depth(10, 60), coin(rng) * math.pi / 2)


def _add_group(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    """Now and then a crowd, whose members are not told apart: a region without a number."""
    kind = str(rng.choice(["person", "bicycle", "car", ""], p=[0.16, 0.12, 0.12, 0.6]))
    if not kind:
        return
    side = pick(rng, street.sides)
    near, far, offset, half = {
        "person": (35, 90, 2.0, (1.6, 1.0)),
        "bicycle": (10, 40, 1.0, (0.9, 1.6)),
        "car": (80, 150, -1.2, (1.3, 8.0)),
    }[kind]
    x, z = side.kerb + side.outward * offset, put.depth(near, far)
    if not put.free(x, z, *half):
        return
    crowd = Drawing((90, 90, 94), relief=0.4 if kind == "person" else 0.0, grain=0.04)
    for step in np.linspace(1, -1, 6).tolist():
        if kind == "person":
            place = x + rng.uniform(-1.2, 1.2), z + 0.8 * step, rng.uniform(0, 6.28)
            crowd.extend(person(put.camera, put.light, place, rng)[0])
        elif kind == "bicycle":
            place = x, z + 1.4 * step, side.outward * 1.45
            crowd.extend(bicycle(put.camera, put.light, place, rng))
        else:
            heading = 0.0 if side.outward > 0 else math.pi
            model = VEHICLES["car"](rng)
            crowd.extend(paint_model(model, put.camera, put.light, x, z + 13 * step, heading)[0])
    put.add([(f"{kind}group", crowd)], x, z, half, 1.5)


def _add_furniture(street: Street, put: _Placer, rng: np.random.Generator) -> None:
    for side in street.sides:
        outward, verge = side.outward, side.verge
        line = side.kerb + outward * 0.6
        z, spacing = rng.uniform(9, 26), rng.uniform(18, 30)
        while z < 140:
            put.furniture("lamp", line, z)
            z += spacing
        if street.crossing:
            for z in (street.crossing[0] - 1, street.crossing[1] + 1):
                if rng.random() < 0.75:
                    put.furniture("traffic light", line, z)
        elif rng.random() < 0.45:
            put.furniture("traffic light", line, put.depth(18, 80))
        for kind, most in (("traffic sign", 4), ("static", 3)):
            for _ in range(int(rng.integers(0, most))):
                x = line + outward * rng.uniform(-0.2, 0.3)
                put.furniture(kind, x, put.depth(9, 70))
        if rng.random() < 0.2:
            put.furniture("dynamic", line + outward * rng.uniform(0, 1), put.depth(8, 35))
        if rng.random() < (0.8 if verge else 0.45):
            x = 0.5 * (verge[0] + verge[1]) if verge else line + outward * 0.4
            z, spacing = rng.uniform(12, 26), rng.uniform(8, 16)
            while z < 130:
                if rng.random() < 0.8 and not street.in_crossing(z, 2):
                    put.furniture("tree", x + rng.normal(0, 0.2), z)
                z += spacing
        if verge:
            for _ in range(int(rng.integers(0, 4))):
                put.furniture("bush", rng.uniform(*verge), put.depth(12, 70))
