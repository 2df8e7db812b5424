"""Clustering shapes: known anchors come back, and they fit better than the default ones."""

import numpy as np
import pytest
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from d2_cityscapes.modeling.anchors.clustering import (
    DEFAULT_RATIOS,
    DEFAULT_SIZES,
    AnchorError,
    anchor_quality,
    anchor_shapes,
    best_shape_iou,
    cluster_shapes,
    cluster_shapes_as_published,
)

SIZES, RATIOS = (12.0, 30.0, 61.0, 119.0, 230.0), (0.55, 1.1, 2.3)


def shapes_around(sizes, ratios, number=3000, spread=0.03, seed=0) -> np.ndarray:
    """(number, 2) shapes scattered around the anchors."""
    rng = np.random.default_rng(seed)
    placed = anchor_shapes(sizes, ratios)
    return placed[rng.integers(len(placed), size=number)] * rng.normal(1, spread, (number, 2))


def test_recovers_known_sizes_and_ratios():
    found = cluster_shapes(shapes_around(SIZES, RATIOS), 5, 3)
    np.testing.assert_allclose(found.sizes, SIZES, rtol=0.05)
    np.testing.assert_allclose(found.aspect_ratios, [RATIOS], rtol=0.05)


def test_is_deterministic_and_independent_of_order():
    shapes = shapes_around(SIZES, RATIOS)
    found = cluster_shapes(shapes, 5, 3)
    assert found == cluster_shapes(shapes, 5, 3)
    other = cluster_shapes(shapes[::-1], 5, 3)
    np.testing.assert_allclose(found.sizes, other.sizes, rtol=1e-3)


def test_the_published_way_is_linear_and_trimmed():
    """By hand: of 100 areas the 3 smallest and 3 largest are out; a plain mean of the rest."""
    squares = np.repeat(
        [[2.0, 2.0], [10.0, 10.0], [30.0, 30.0], [9000.0, 9000.0]], [3, 47, 47, 3], 0
    )
    found = cluster_shapes_as_published(squares, 1, 1)
    assert found.sizes == (20.0,) and found.aspect_ratios == ((1.0,),)
    assert cluster_shapes(squares, 1, 1).sizes == (19.58,)  # geometric, of all
    wide = np.array([[10.0, 10.0], [30.0, 10.0]])  # plain mean of w / h is 2
    assert cluster_shapes_as_published(np.repeat(wide, 50, 0), 1, 1).aspect_ratios == ((0.5,),)


def test_the_published_way_on_boxes_like_those_of_cityscapes():
    """Large boxes draw the centres of a plain scale, so that small ones fit less well."""
    rng = np.random.default_rng(0)
    size, ratio = np.exp(rng.normal(3.9, 1.1, 5000)), np.exp(rng.normal(0.1, 0.5, 5000))
    shapes = np.stack([size / np.sqrt(ratio), size * np.sqrt(ratio)], axis=1)
    published, ours = cluster_shapes_as_published(shapes, 5, 3), cluster_shapes(shapes, 5, 3)
    assert published.sizes[0] > 2 * ours.sizes[0]
    fits = [anchor_quality(shapes, a.sizes, a.aspect_ratios) for a in (published, ours)]
    assert fits[1].mean_best_iou > fits[0].mean_best_iou


def test_ratio_is_height_over_width():
    tall = np.array([[10.0, 20.0], [11.0, 22.0]])  # people
    assert cluster_shapes(tall, 1, 1).aspect_ratios == ((2.0,),)
    np.testing.assert_allclose(anchor_shapes([10], [4.0]), [[5, 20]])


def test_ratios_of_each_size():
    shapes = anchor_shapes([10, 20], [[1.0, 4.0], [0.25, 1.0]])
    np.testing.assert_allclose(shapes, [[10, 10], [5, 20], [40, 10], [20, 20]])
    for shared in ([1.0, 4.0], [[1.0, 4.0]], [[1.0, 4.0]] * 2):
        expected = [[10, 10], [5, 20], [20, 20], [10, 40]]
        np.testing.assert_allclose(anchor_shapes([10, 20], shared), expected)


def test_anchor_shapes_equal_detectron2s():
    cells = DefaultAnchorGenerator(
        sizes=[list(SIZES)], aspect_ratios=[list(RATIOS)], strides=[4]
    ).cell_anchors
    boxes = next(iter(cells)).numpy()
    np.testing.assert_allclose(anchor_shapes(SIZES, RATIOS), boxes[:, 2:] - boxes[:, :2], rtol=1e-5)


def test_small_boxes_count_as_much_as_large_ones():
    """On a linear scale the large boxes below would get three of the four centres."""
    shapes = shapes_around((8, 16, 200, 400), (1.0,), spread=0.25)
    np.testing.assert_allclose(cluster_shapes(shapes, 4, 1).sizes, (8, 16, 200, 400), rtol=0.1)


def test_best_iou_by_hand():
    shapes = np.array([[10, 10], [20, 5], [40, 40], [5, 20]], dtype=float)
    anchors = np.array([[10, 10], [20, 20]], dtype=float)
    np.testing.assert_allclose(best_shape_iou(shapes, anchors), [1, 1 / 3, 1 / 4, 1 / 3])
    quality = anchor_quality(shapes, [10, 20], [1.0])
    assert quality.mean_best_iou == pytest.approx((1 + 2 / 3 + 1 / 4) / 4)
    assert (quality.recall_50, quality.recall_70) == (0.25, 0.25)


def test_best_iou_in_chunks(monkeypatch):
    shapes, anchors = shapes_around(SIZES, RATIOS, number=103), anchor_shapes(SIZES, RATIOS)
    whole = best_shape_iou(shapes, anchors)
    monkeypatch.setattr("d2_cityscapes.modeling.anchors.clustering._CHUNK", 10)
    np.testing.assert_array_equal(best_shape_iou(shapes, anchors), whole)
    assert best_shape_iou(shapes[:0], anchors).shape == (0,)


def test_fits_better_than_the_default():
    shapes = shapes_around(SIZES, RATIOS, spread=0.15)
    found = cluster_shapes(shapes, 5, 3)
    ours = anchor_quality(shapes, found.sizes, found.aspect_ratios)
    default = anchor_quality(shapes, DEFAULT_SIZES, DEFAULT_RATIOS)
    assert ours.mean_best_iou > default.mean_best_iou
    assert ours.recall_70 > default.recall_70


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (np.zeros((0, 2)), "no boxes"),
        (np.array([[10.0, 10.0], [20.0, 30.0]]), "2 boxes with 2 distinct sizes .*NUM_SIZES"),
        (np.array([[x, x] for x in range(1, 20)], float), "1 distinct height/width ratios"),
    ],
)
def test_too_few_boxes(shapes, message):
    with pytest.raises(AnchorError, match=message):
        cluster_shapes(shapes, 5, 3)


@pytest.mark.parametrize("number", [0, -1])
def test_no_clusters_asked_for(number):
    shapes = shapes_around(SIZES, RATIOS, number=100)
    with pytest.raises(AnchorError, match=f"cannot form {number} clusters: set .*NUM_SIZES betw"):
        cluster_shapes(shapes, number, 3)
    with pytest.raises(AnchorError, match=f"cannot form {number} clusters: set .*NUM_RATIOS betw"):
        cluster_shapes(shapes, 5, number)
