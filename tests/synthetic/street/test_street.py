"""The parts that made-up scenes are drawn with."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from d2_cityscapes.synthetic.street.camera import NEAR, Camera, Light, convex_hull
from d2_cityscapes.synthetic.street.canvas import Canvas, clip_polygon, draw_ids, min_visible
from d2_cityscapes.synthetic.street.furniture import FURNITURE
from d2_cityscapes.synthetic.street.people import person
from d2_cityscapes.synthetic.street.solids import Solid, box, paint_model
from d2_cityscapes.synthetic.street.sprites import (
    Drawing,
    as_polygon,
    rasterize,
    simplify,
    trace_outline,
)
from d2_cityscapes.synthetic.street.street import Prop, back_to_front, sample_street
from d2_cityscapes.synthetic.street.textures import noise_tile, stripe
from d2_cityscapes.synthetic.street.two_wheelers import bicycle, motorcycle, rider
from d2_cityscapes.synthetic.street.vehicles import VEHICLES

FRAME = (200, 100)  # W, H
CAMERA = Camera(height=100, width=200, focal=220.0, center_x=100.0, horizon=42.0, elevation=1.5)
LIGHT = Light((0.0, 1.0, 0.0), 0.5, (220.0, 220.0, 220.0), 500.0, (120.0, 160.0, 210.0))
TEXTURE = noise_tile(np.random.default_rng(0), 16)


def mask_of(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def filled(mask: np.ndarray) -> np.ndarray:
    height, width = mask.shape
    return rasterize(as_polygon(trace_outline(mask)), (width, height))


# -- camera


def test_projection_of_points_on_paper() -> None:
    points = np.array([(0.0, 1.5, 10.0), (2.0, 0.0, 22.0), (-1.0, 2.5, 220.0)])
    expected = [(100, 42), (100 + 20, 42 + 15), (99, 41)]
    assert np.array(CAMERA.project(points)) == pytest.approx(np.array(expected))
    assert CAMERA.scale(22.0) == pytest.approx(10)  # px per metre
    assert CAMERA.nearest_ground == pytest.approx(220 * 1.5 / 58)


def test_outline_is_cut_off_before_the_camera() -> None:
    square = [(1.0, 0.0, -3.0), (1.0, 2.0, -3.0), (1.0, 2.0, 11.0), (1.0, 0.0, 11.0)]
    cut = np.array(CAMERA.outline(square))
    assert len(cut) == 4
    assert cut[:, 0].min() == pytest.approx(120)
    assert cut[:, 0].max() == pytest.approx(100 + 220 / NEAR)
    assert CAMERA.outline([(x, y, -z) for x, y, z in square[2:] + square[2:]]) == []


def test_convex_hull() -> None:
    corners = [(0, 0), (4, 0), (4, 3), (0, 3)]
    hull = convex_hull([*corners, (2, 1), (2, 0), (4, 3)])
    assert sorted(hull) == sorted(corners)


def test_light() -> None:
    assert LIGHT.on_face((0, 1, 0)) > LIGHT.on_face((1, 0, 0)) >= LIGHT.on_face((0, -1, 0))
    assert LIGHT.haze_share(0) == 0
    assert LIGHT.haze_share(500) == pytest.approx(1 - 1 / math.e)


# -- outlines


@pytest.mark.parametrize(
    "rows",
    [
        ("#",),
        ("...", ".#.", "..."),
        ("####",),
        ("#", "#", "#"),
        ("###", "###"),
        ("#..", ".#.", "..#"),
        (".#.", "###", ".#."),
        ("#...#", "#...#", "#####", "..#..", "..#.."),
    ],
)
def test_outline_encloses_exactly_the_mask(rows: tuple[str, ...]) -> None:
    mask = mask_of(*rows)
    assert (filled(mask) == mask).all()


def test_outline_ignores_holes_and_smaller_parts() -> None:
    ring = mask_of("####.#", "#..#..", "#..#.#", "####.#")
    expected = np.zeros_like(ring)
    expected[:, :4] = True
    assert (filled(ring) == expected).all()
    small_part_on_top = mask_of("#....", "..###", "..###")
    assert (filled(small_part_on_top) == mask_of(".....", "..###", "..###")).all()
    assert trace_outline(np.zeros((3, 4), dtype=bool)).shape == (0, 2)


@settings(max_examples=80, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outline_runs_along_the_rim_of_one_part(mask: np.ndarray) -> None:
    outline = trace_outline(mask)
    assert (len(outline) == 0) == (not mask.any())
    assert mask[outline[:, 1], outline[:, 0]].all()
    steps = np.abs(np.diff(outline, axis=0))
    assert (steps.max(axis=1) == 1).all() if len(steps) else True


def test_simplify_keeps_corners_and_stays_near() -> None:
    square = trace_outline(np.ones((20, 30), dtype=bool))
    corners = [(0, 0), (0, 19), (29, 0), (29, 19)]
    assert sorted(map(tuple, simplify(square, 0.5).tolist())) == corners
    yy, xx = np.mgrid[:41, :41]
    disc = trace_outline((xx - 20) ** 2 + (yy - 20) ** 2 <= 400)
    fewer = simplify(disc, 1.0)
    assert 8 <= len(fewer) < len(disc) / 3
    inside = rasterize(as_polygon(fewer), (41, 41))
    assert ((xx - 20) ** 2 + (yy - 20) ** 2 <= 18.5**2).sum() <= inside.sum() <= 1300


# -- drawings


def test_picture_and_label_agree() -> None:
    drawing = Drawing((50, 60, 70), relief=0.5, grain=0.1)
    drawing.add([(20, 10), (60, 10), (60, 50), (20, 50)], (200, 0, 0))
    drawing.add([(55, 30), (90, 30), (90, 40), (55, 40)], (0, 0, 200))
    sprite = drawing.render(FRAME, LIGHT, 10.0, TEXTURE)
    assert sprite is not None
    inside = rasterize(sprite.polygon, FRAME)
    height, width = sprite.cover.shape
    crop = inside[sprite.y : sprite.y + height, sprite.x : sprite.x + width]
    assert inside.sum() == crop.sum() == pytest.approx(40 * 40 + 30 * 10, rel=0.08)
    assert (sprite.cover[crop] > 0.3).all() and (sprite.cover[~crop] < 0.5).all()
    left = sprite.rgb[:, 25 - sprite.y, 30 - sprite.x]
    right = sprite.rgb[:, 35 - sprite.y, 80 - sprite.x]
    assert left[0] > 100 > left[2] and right[2] > 100 > right[0]


def test_drawings_end_at_the_frame() -> None:
    drawing = Drawing((50, 60, 70))
    drawing.add([(-500, -50), (30, -50), (30, 500), (-500, 500)], (200, 0, 0))
    sprite = drawing.render(FRAME, LIGHT, 10.0, TEXTURE)
    assert sprite is not None
    assert (sprite.x, sprite.y, sprite.cover.shape) == (0, 0, (100, 32))
    assert rasterize(sprite.polygon, FRAME).sum() == pytest.approx(30 * 100, rel=0.04)
    outside = Drawing((50, 60, 70))
    outside.add([(300, 10), (320, 10), (320, 40)], (200, 0, 0))
    assert outside.render(FRAME, LIGHT, 10.0, TEXTURE) is None
    assert Drawing((0, 0, 0)).render(FRAME, LIGHT, 10.0, TEXTURE) is None


def test_stripe_is_the_share_of_a_pixel() -> None:
    position = np.arange(6) + 0.5
    assert stripe(position, 2.0, 4.0, 1.0).tolist() == [0, 0, 1, 1, 0, 0]
    assert stripe(position, 2.25, 4.0, 1.0)[2] == pytest.approx(0.75)


# -- things


@pytest.mark.parametrize("label", VEHICLES)
@pytest.mark.parametrize("yaw", [0.0, 0.6, math.pi / 2, 2.5, math.pi, 4.0])
def test_vehicles_have_their_size_from_every_side(label: str, yaw: float) -> None:
    model = VEHICLES[label](np.random.default_rng(3))
    z = 150.0
    drawing, plate = paint_model(model, CAMERA, LIGHT, 0.0, z, yaw)
    points = np.array(drawing.corners).reshape(-1, 2)
    width, height = np.ptp(points, axis=0) / CAMERA.scale(z)
    seen = abs(math.sin(yaw)) * model.length + abs(math.cos(yaw)) * model.width
    assert width == pytest.approx(seen, rel=0.3)
    assert height == pytest.approx(model.height, rel=0.35)
    assert drawing.render(FRAME, LIGHT, z, TEXTURE) is not None
    assert len(plate) == (4 if model.plate and math.cos(yaw) > 0.1 else 0)


def test_a_solid_hides_its_own_far_sides() -> None:
    solid = Solid(box(-1, 1, 0, 2), 2.0, (100, 100, 100))
    solid.strips[0].color, solid.strips[2].color = (255, 0, 0), (0, 255, 0)  # rear, front
    model = VEHICLES["trailer"](np.random.default_rng(0))
    model.solids, model.wheels = [solid], []
    for yaw, channel in ((0.0, 0), (math.pi, 1)):  # driving away we see the rear
        drawing, _ = paint_model(model, CAMERA, LIGHT, 0.0, 20.0, yaw)
        colors = np.array([color for _, color in drawing.parts])
        assert (colors[:, channel] > 2 * colors[:, 1 - channel]).any()
        assert not (colors[:, 1 - channel] > 2 * colors[:, channel] + 1).any()


@pytest.mark.parametrize("yaw", [0.0, 1.0, math.pi / 2, math.pi, 5.0])
def test_people_and_two_wheelers(yaw: float) -> None:
    z = 15.0
    for seed in range(6):
        place, rng = (0.5, z, yaw), np.random.default_rng(seed)
        drawing, height = person(CAMERA, LIGHT, place, rng)
        points = np.array(drawing.corners).reshape(-1, 2)
        assert np.ptp(points[:, 1]) / CAMERA.scale(z) == pytest.approx(height, rel=0.15)
        drawings = [drawing]
        for paint in (bicycle, motorcycle):
            drawings.append(paint(CAMERA, LIGHT, place, rng))
            drawings.append(rider(CAMERA, LIGHT, place, rng, on=paint.__name__))
        for drawing in drawings:
            sprite = drawing.render(FRAME, LIGHT, z, TEXTURE)
            assert sprite is not None
            covered = (sprite.cover > 0.4).sum()  # one piece: the outline loses next to nothing
            assert rasterize(sprite.polygon, FRAME).sum() > 0.9 * covered


@pytest.mark.parametrize("kind", FURNITURE)
def test_furniture(kind: str) -> None:
    for seed in range(6):
        parts = FURNITURE[kind](CAMERA, LIGHT, 1.0, 25.0, np.random.default_rng(seed))
        assert parts
        for label, drawing in parts:
            assert draw_ids([(label, [(0, 0), (1, 0), (1, 1)])], (4, 4)).max() > 0
            assert drawing.render(FRAME, LIGHT, 25.0, TEXTURE) is not None


def test_painting_order() -> None:
    def prop(x0: float, x1: float, z0: float, z1: float) -> Prop:
        return Prop([], x0, x1, z0, z1, 1.0)

    bus, parked, far = prop(1.5, 4, 10, 22), prop(4, 6, 14, 18), prop(-1, 1, 40, 44)
    nearest = prop(3, 5, 4, 6)
    assert back_to_front([nearest, bus, far, parked]) == [far, parked, bus, nearest]


def test_streets_fit_together() -> None:
    for seed in range(20):
        street = sample_street(256, 512, np.random.default_rng(seed))
        left, right = street.road
        assert all(left < x < right for x, _ in street.lanes)
        for side in street.sides:
            outermost = [side.outward * x for x in (side.kerb, *side.walk)]
            assert outermost == sorted(outermost)
            assert all(side.outward * plot.x >= outermost[-1] for plot in side.plots)
            depths = [plot.z0 for plot in side.plots]
            assert depths == sorted(depths, reverse=True)


# -- canvas


def test_clip_polygon() -> None:
    beyond = np.array([(-50.0, -20.0), (250.0, -20.0), (250.0, 50.2), (-50.0, 50.2)])
    assert sorted(clip_polygon(beyond, FRAME)) == [(0, 0), (0, 50), (199, 0), (199, 50)]
    assert clip_polygon(beyond - (0, 200), FRAME) == []


def test_draw_ids_counts_instances_not_groups_or_plates() -> None:
    def square(x: int) -> list[tuple[int, int]]:
        return [(x, 0), (x + 1, 0), (x + 1, 1), (x, 1)]

    labels = ["road", "car", "cargroup", "license plate", "car", "person", "polegroup", "caravan"]
    ids = draw_ids([(label, square(3 * i)) for i, label in enumerate(labels)], (24, 2))
    assert ids.dtype == np.uint16
    assert ids[0, ::3].tolist() == [7, 26000, 26, 0, 26001, 24000, 18, 29000]


def test_hidden_things_are_left_out() -> None:
    def square(x: float, y: float, size: float) -> Drawing:
        drawing = Drawing((200, 100, 50))
        drawing.add([(x, y), (x + size, y), (x + size, y + size), (x, y + size)], (200, 100, 50))
        return drawing

    canvas = Canvas(CAMERA, LIGHT, np.random.default_rng(0))
    corners = np.array([(0, 0), (199, 0), (199, 99), (0, 99)])
    canvas.add_surface("sky", corners, lambda x, y: np.full((3, len(x)), 200.0, np.float32))
    canvas.add_drawing("car", square(20, 20, 30), 20.0)  # hidden by the truck
    canvas.add_surface("license plate", np.array([(30.0, 30.0), (36.0, 30.0), (36.0, 34.0)]))
    canvas.add_drawing("truck", square(15, 15, 40), 15.0)
    canvas.add_drawing("person", square(100, 50, 2), 100.0)  # too small
    canvas.add_drawing("traffic sign", square(120, 50, 2), 100.0)  # small, but no instance
    canvas.add_drawing("bus", square(150, 50, 6), 100.0)
    canvas.drop_hidden()
    assert [label for label, _ in canvas.objects] == ["sky", "truck", "traffic sign", "bus"]
    ids = draw_ids(canvas.objects, FRAME)
    assert (ids == 28000).sum() >= min_visible(FRAME)
    image = canvas.paint()
    assert (image[:, ids == 23] > 150).mean() > 0.99
    assert image[2, 30, 30] < 150 < image[0, 30, 30]
