"""From what models predict to maps of instance ids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2_cityscapes.evaluation.panoptic.instance_ids import (
    ids_of_detections,
    ids_of_output,
    ids_of_panoptic,
    ids_of_train_ids,
    train_ids_of_sem_seg,
)
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError
from d2_cityscapes.labels import CITYSCAPES

ROAD_AND_CAR = [{"id": 1, "category_id": 0}, {"id": 7, "category_id": 13}]


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


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_any_integers_will_do(dtype: type) -> None:
    ids = ids_of_panoptic(np.array([[0, 1], [7, 7]], dtype), ROAD_AND_CAR)
    np.testing.assert_array_equal(ids, [[0, 7], [26000, 26000]])


def test_void_may_be_minus_1() -> None:
    """Panoptic-DeepLab's convention. Pixels of 0 that are no listed segment stay void."""
    ids = ids_of_panoptic(torch.tensor([[-1, 1, 7, 0]]), ROAD_AND_CAR)
    np.testing.assert_array_equal(ids, [[0, 7, 26000, 0]])
    ids = ids_of_panoptic(torch.tensor([[-1, 0]]), [{"id": 0, "category_id": 10}])
    np.testing.assert_array_equal(ids, [[0, 23]])
    assert not ids_of_panoptic(torch.full((2, 3), -1), []).any()


def test_without_a_list_ids_are_category_times_1000() -> None:
    """Detectron2's own Panoptic-DeepLab: category_id * label_divisor + k, void -1, road 0."""
    panoptic = torch.tensor([[-1, 0, 0, 8000], [13001, 13001, 13002, 11001]], dtype=torch.int32)
    expected = [[0, 7, 7, 21], [26000, 26000, 26001, 24000]]
    np.testing.assert_array_equal(ids_of_panoptic(panoptic, None), expected)
    for stranger in (60_000, 19_000, -2, 255_000):
        with pytest.raises(InvalidMapError):
            ids_of_panoptic(torch.tensor([[0, stranger]]), None)


@pytest.mark.parametrize("category", [-1, 19, 60, 255, 2**70, 13.0, "car", None])
def test_categories_that_the_data_do_not_have_are_refused(category: object) -> None:
    with pytest.raises(InvalidMapError, match=r"segment 7.*category_id.*0 to 18"):
        ids_of_panoptic(np.array([[0, 7]]), [{"id": 7, "category_id": category}])


@pytest.mark.parametrize(
    ("panoptic", "info", "word"),
    [
        ([[-2, 1]], ROAD_AND_CAR, r"\[-2\]"),
        ([[1, 2**40]], ROAD_AND_CAR, "1099511627776"),
        ([[1]], [*ROAD_AND_CAR, {"id": 1, "category_id": 2}], "segment 1 .*twice"),
        ([[1]], [{"category_id": 2}], "id"),
        ([[1]], [{"id": 1}], "category_id"),
        ([[1]], [{"id": 1, "category_id": 0, "isthing": True}], "segment 1.*road is stuff"),
        ([[1.0]], ROAD_AND_CAR, "integers"),
        ([[True]], ROAD_AND_CAR, "integers"),
        ([1, 7], ROAD_AND_CAR, r"\(H, W\)"),
        (torch.ones(1, 1, dtype=torch.bfloat16), ROAD_AND_CAR, "integers"),
    ],
)
def test_other_maps_are_refused(panoptic: object, info: list[dict], word: str) -> None:
    with pytest.raises(InvalidMapError, match=word):
        ids_of_panoptic(panoptic, info)


def test_a_listed_id_of_any_size_costs_no_memory() -> None:
    info = [{"id": 2**60, "category_id": 0}]
    np.testing.assert_array_equal(ids_of_panoptic(np.array([[2**60, 0]]), info), [[7, 0]])


@pytest.mark.parametrize("wrong", [-1, 8, 79])
def test_detections_of_other_classes_are_refused(wrong: int) -> None:
    """Also where the score leaves them out: the classes of such a model mean something else."""
    masks = np.ones((2, 1, 4), dtype=bool)
    with pytest.raises(InvalidMapError, match=rf"class {wrong}.* 8 thing classes.*NUM_CLASSES"):
        ids_of_detections(masks, np.array([2, wrong]), np.array([0.9, 0.1]))
    found = Instances((1, 4))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
    found.pred_classes, found.scores = torch.tensor([wrong]), torch.tensor([0.9])
    with pytest.raises(InvalidMapError, match=f"class {wrong}"):
        ids_of_output({"instances": found}, CITYSCAPES)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_and_boxes_must_be_numbers(wrong: float) -> None:
    masks = np.ones((2, 1, 4), dtype=bool)
    with pytest.raises(InvalidMapError, match="score"):
        ids_of_detections(masks, np.array([2, 0]), np.array([0.9, wrong]))
    found = Instances((1, 4))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, wrong, 1.0]]))
    found.pred_classes, found.scores = torch.tensor([2]), torch.tensor([0.9])
    with pytest.raises(InvalidMapError, match="box"):
        ids_of_output({"instances": found}, CITYSCAPES)


def test_scores_of_half_precision() -> None:
    """As mixed precision leaves them; numpy has no bfloat16."""
    found = Instances((1, 4))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
    found.pred_classes, found.scores = torch.tensor([2]), torch.tensor([0.75]).bfloat16()
    np.testing.assert_array_equal(ids_of_output({"instances": found}), [[26000, 26000, 0, 0]])


@pytest.mark.parametrize("wrong", [-1, 19, 254, 256, 1000])
def test_train_ids_that_there_are_not(wrong: int) -> None:
    with pytest.raises(InvalidMapError, match=rf"{wrong} .*train ids"):
        ids_of_train_ids(np.array([[0, wrong]]))


def test_semantic_scores_must_be_numbers() -> None:
    scores = torch.rand(19, 2, 3)
    scores[4, 1, 1] = torch.nan
    with pytest.raises(InvalidMapError, match="nan"):
        train_ids_of_sem_seg(scores)
    scores[4, 1, 1] = -torch.inf  # a class that a model rules out
    assert train_ids_of_sem_seg(scores).shape == (2, 3)
