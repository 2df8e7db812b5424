"""Overlay pictures."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from d2_cityscapes.drawing import overlay
from d2_cityscapes.drawing.overlay import draw_instance_ids, segment_color, side_by_side
from d2_cityscapes.labels import CITYSCAPES

GREY = 100


@pytest.fixture
def image() -> np.ndarray:
    return np.full((64, 128, 3), GREY, dtype=np.uint8)


def test_void_leaves_the_image_as_it_is(image: np.ndarray) -> None:
    for void in (0, 3, 29001):
        picture = draw_instance_ids(image, np.full(image.shape[:2], void), width=256)
        assert picture.shape == (128, 256, 3)
        assert (picture == GREY).all()


def test_segments_are_tinted_with_their_colours_where_they_lie(image: np.ndarray) -> None:
    ids = np.zeros(image.shape[:2], dtype=np.int32)
    ids[:, 64:] = 7
    ids[10:14, 4:8] = 26000  # too small for a name
    picture = draw_instance_ids(image, ids, width=1024).astype(int)
    road = np.array(CITYSCAPES.colors[0])
    assert (picture[:, :60] == GREY).any()
    assert np.abs(picture[:, -1] - (0.55 * GREY + 0.45 * road)).max() <= 1
    inside = picture[12 * 8, 6 * 8]
    assert np.abs(inside - (0.35 * GREY + 0.65 * np.array(segment_color(26000)))).max() <= 1
    rim = picture[10 * 8 : 14 * 8, 4 * 8]
    assert rim.min() > 180, "instances have a bright rim"


def test_large_segments_are_named(image: np.ndarray) -> None:
    ids = np.full(image.shape[:2], 7)
    picture = draw_instance_ids(image, ids)
    white = (picture > 240).all(axis=2)
    assert 100 < white.sum() < 0.01 * white.size
    ids[:] = 0
    ids[:, ::9] = 17  # poles of one pixel: no room for a name
    assert not (draw_instance_ids(image, ids) > 240).all(axis=2).any()


def test_neighbouring_instances_differ_in_colour() -> None:
    for label_id in CITYSCAPES.label_id_of_thing.tolist():
        colors = [np.array(segment_color(label_id * 1000 + k)) for k in range(6)]
        gaps = [np.abs(a - b).sum() for a, b in itertools.pairwise(colors)]
        assert min(gaps) > 30
    assert segment_color(26) == tuple(CITYSCAPES.colors[13])


@pytest.mark.parametrize("size", [(64, 128), (1024, 2048), (31, 57)])
def test_any_size_becomes_one_width(size: tuple[int, int], paint: Callable) -> None:
    ids = paint(0, size)
    picture = draw_instance_ids(np.zeros((*size, 3), dtype=np.uint8), ids.astype(np.uint16))
    assert picture.shape == (round(1024 * size[0] / size[1]), 1024, 3)
    assert picture.dtype == np.uint8


def test_panels_stand_in_a_row_in_order() -> None:
    panels = {str(value): np.full((20, 50, 3), value, np.uint8) for value in (10, 20, 30)}
    picture = side_by_side(panels)
    assert picture.shape[1] > 150
    assert [picture[-1, x].tolist() for x in (0, -1)] == [[10] * 3, [30] * 3]
    assert (picture[-1] == 20).all(axis=1).sum() == 50


def test_painted_in_bands_it_is_the_same(paint: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = paint(3, (61, 90))
    picture = np.random.default_rng(0).integers(0, 256, (61, 90, 3), dtype=np.uint8)
    whole = draw_instance_ids(picture, ids, width=90)
    monkeypatch.setattr(overlay, "_AT_ONCE", 7 * 90)
    assert (draw_instance_ids(picture, ids, width=90) == whole).all()
