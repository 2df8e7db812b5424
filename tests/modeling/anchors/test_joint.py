"""Clustering by 1 - IoU: levels with ratios of their own, and never worse than the start."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_cityscapes.modeling.anchors.clustering import (
    Anchors,
    anchor_quality,
    anchor_shapes,
    best_anchors,
    best_shape_iou,
    cluster_shapes,
)
from d2_cityscapes.modeling.anchors.joint import fit_jointly

# Small boxes stand, large ones lie: one set of ratios cannot serve all levels.
SIZES = (12.0, 40.0, 130.0)
RATIOS = ((1.5, 3.0), (0.7, 1.5), (0.25, 0.6))


def scattered(spread=0.03, number=1500, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    placed = anchor_shapes(SIZES, RATIOS)
    return placed[rng.integers(len(placed), size=number)] * rng.normal(1, spread, (number, 2))


def mean_iou(shapes, anchors: Anchors) -> float:
    return anchor_quality(shapes, anchors.sizes, anchors.aspect_ratios).mean_best_iou


def test_recovers_sizes_with_ratios_of_their_own():
    shapes = scattered()
    start = cluster_shapes(shapes, 3, 2)
    found = fit_jointly(shapes, start)
    np.testing.assert_allclose(found.sizes, SIZES, rtol=0.05)
    np.testing.assert_allclose(found.aspect_ratios, RATIOS, rtol=0.05)
    assert mean_iou(shapes, found) > mean_iou(shapes, start) + 0.1


def test_known_anchors_are_a_fixed_point():
    start = Anchors(SIZES, RATIOS)
    assert fit_jointly(anchor_shapes(SIZES, RATIOS), start) == start


def test_is_deterministic():
    shapes = scattered(spread=0.2)
    start = cluster_shapes(shapes, 3, 2)
    assert fit_jointly(shapes, start) == fit_jointly(shapes.copy(), start)


sides = st.floats(1.0, 500.0)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(st.tuples(sides, sides), min_size=1, max_size=30),
    sizes=st.lists(st.floats(2.0, 400.0), min_size=1, max_size=4),
    ratios=st.lists(st.floats(0.2, 5.0), min_size=1, max_size=3),
)
def test_never_worse_than_the_start(shapes, sizes, ratios):
    shapes, start = np.array(shapes), Anchors(tuple(sorted(sizes)), (tuple(sorted(ratios)),))
    found = fit_jointly(shapes, start)
    assert mean_iou(shapes, found) >= mean_iou(shapes, start)
    assert len(found.sizes) == len(start.sizes)
    assert list(found.sizes) == sorted(found.sizes)
    if found != start:
        assert len(found.aspect_ratios) == len(found.sizes)
    assert all(list(r) == sorted(r) and len(r) == len(ratios) for r in found.aspect_ratios)


def test_one_box_is_met():
    """A single anchor moves onto a single box: 30 wide, 60 high."""
    found = fit_jointly(np.array([[30.0, 60.0]]), Anchors((10.0,), ((1.0,),)))
    assert found.sizes[0] == pytest.approx(np.sqrt(1800), rel=0.02)
    assert found.aspect_ratios[0][0] == pytest.approx(2, rel=0.02)


def test_best_anchors_by_hand():
    shapes = np.array([[10, 10], [20, 5], [40, 40]], dtype=float)
    anchors = np.array([[20, 20], [10, 10]], dtype=float)
    index, iou = best_anchors(shapes, anchors)
    assert index.tolist() == [1, 1, 0]
    np.testing.assert_allclose(iou, [1, 1 / 3, 1 / 4])
    np.testing.assert_array_equal(best_shape_iou(shapes, anchors), iou)
