"""From what models predict to maps of instance ids."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.evaluation.panoptic.instance_ids import (
    ids_of_detections,
    ids_of_panoptic,
    ids_of_train_ids,
)
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError


def test_panoptic_segments_become_instances_in_their_order() -> None:
    panoptic = np.array([[0, 5, 5], [2, 9, 9]], dtype=np.int32)
    info = [
        {"id": 5, "category_id": 13, "isthing": True},
        {"id": 9, "category_id": 13, "isthing": True},
        {"id": 2, "category_id": 0, "isthing": False},
    ]
    expected = [[0, 26000, 26000], [7, 26001, 26001]]
    np.testing.assert_array_equal(ids_of_panoptic(panoptic, info), expected)


def test_panoptic_map_of_void_alone() -> None:
    assert not ids_of_panoptic(np.zeros((2, 3), np.int32), []).any()


def test_panoptic_segment_without_info_is_refused() -> None:
    with pytest.raises(InvalidMapError, match=r"segments \[3\]"):
        ids_of_panoptic(np.array([[0, 3]]), [{"id": 5, "category_id": 0}])


def test_too_many_instances_are_refused() -> None:
    info = [{"id": i, "category_id": 13} for i in range(1, 1002)]
    with pytest.raises(InvalidMapError, match=r"more than 1000 .*car"):
        ids_of_panoptic(np.zeros((2, 3), np.int32), info)


def test_best_detection_lies_on_top() -> None:
    masks = np.zeros((3, 1, 4), dtype=bool)
    masks[0, 0, :3] = masks[1, 0, 2:] = masks[2] = True
    ids = ids_of_detections(masks, np.array([2, 0, 7]), np.array([0.9, 0.5, 0.49]))
    np.testing.assert_array_equal(ids, [[26000, 26000, 26000, 24001]])


def test_no_detection() -> None:
    ids = ids_of_detections(np.zeros((0, 2, 3), bool), np.zeros(0, int), np.zeros(0))
    np.testing.assert_array_equal(ids, np.zeros((2, 3)))


def test_train_ids() -> None:
    np.testing.assert_array_equal(ids_of_train_ids(np.array([[0, 18, 255]])), [[7, 33, 0]])
