"""The instance table of an id map, against hand-worked pictures and a slow independent version."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances, panoptic_segments


def test_a_hand_worked_picture():
    # road 7, a car of two parts, one person pixel, a group of bicycles (33), a trailer (30000)
    ids = np.full((4, 6), 7)
    ids[0, 0] = ids[2, 3] = 26000
    ids[3, 5] = 24001
    ids[1, 1:4] = 33
    ids[3, 0] = 30000
    found = find_instances(ids, CITYSCAPES)
    assert found.ids.tolist() == [33, 24001, 26000]
    assert found.classes.tolist() == [18, 11, 13]
    assert found.boxes.tolist() == [[1, 1, 4, 2], [5, 3, 6, 4], [0, 0, 4, 3]]
    assert found.areas.tolist() == [3, 1, 2]
    assert found.crowd.tolist() == [True, False, False]


def test_an_image_without_things():
    found = find_instances(np.full((3, 5), 11), CITYSCAPES)
    assert len(found) == 0 and found.boxes.shape == (0, 4)


@given(
    hnp.arrays(
        np.int32,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
        elements=st.sampled_from([0, 7, 26, 24000, 24001, 26000, 33002, 30001]),
    )
)
def test_equals_a_mask_by_mask_version(ids):
    found = find_instances(ids, CITYSCAPES)
    things = [i for i in np.unique(ids) if i in (26, 24000, 24001, 26000, 33002)]
    assert found.ids.tolist() == things
    for row, segment in enumerate(things):
        mask = ids == segment
        ys, xs = np.nonzero(mask)
        assert found.areas[row] == mask.sum()
        assert found.boxes[row].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert found.crowd[row] == (segment < 1000)


def test_panoptic_segments_of_a_hand_worked_picture():
    # void, road, a car of two parts, a group of bicycles, a trailer (void)
    ids = np.array([[0, 7, 7, 26000], [33, 33, 7, 26000], [30000, 7, 33, 26000]])
    panoptic, segments_info = panoptic_segments(ids, CITYSCAPES)
    assert panoptic.tolist() == [[0, 1, 1, 3], [2, 2, 1, 3], [0, 1, 2, 3]]
    assert segments_info == [
        {"id": 1, "category_id": 0, "isthing": False, "iscrowd": 0, "area": 4},
        {"id": 2, "category_id": 18, "isthing": True, "iscrowd": 1, "area": 3},
        {"id": 3, "category_id": 13, "isthing": True, "iscrowd": 0, "area": 3},
    ]


def test_a_map_of_void_has_no_segments():
    panoptic, segments_info = panoptic_segments(np.zeros((2, 3), int), CITYSCAPES)
    assert not panoptic.any() and segments_info == []
