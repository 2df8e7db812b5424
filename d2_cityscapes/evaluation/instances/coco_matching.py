"""The COCO protocol, image by image: which detection finds which true object.

The rules are those of pycocotools; its masks are ours too. What it does in loops over every pair of
objects is done here for the few pairs that overlap.

The (at most 100) best detections of a class choose in order of score, at every IoU threshold, the
free true object that they overlap most. Crowds are never taken, and the IoU with one is the part of
the detection that lies on it. A detection on a crowd, or on an object of another size than asked
for, is left out; so is one without an object that is itself of another size.

Shape letters: H, W pixels; N objects; D detections and G true objects of one class; A area groups
(all; small, medium and large by box; in "segm" these by mask); T IoU thresholds; C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from d2_cityscapes.evaluation.instances.rle import encode_crop, encode_mask
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.instances import MEDIUM_AREA, SMALL_AREA, InstanceTable

__all__ = [
    "AREA_GROUPS",
    "NUM_THRESHOLDS",
    "CocoMatches",
    "CocoObjects",
    "match_objects",
    "predicted_objects",
    "true_objects",
]

# Task -> what each area group adds to the name of a metric.
AREA_GROUPS = {
    "bbox": ("", "s", "m", "l"),
    "segm": ("", "s", "m", "l", "s_mask", "m_mask", "l_mask"),
}
NUM_THRESHOLDS = 10  # of IoU: 0.5, 0.55 ... 0.95

_THRESHOLDS = np.linspace(0.5, 0.95, NUM_THRESHOLDS)
_MAX_DETECTIONS = 100  # of one class in one image
# of the area groups, pixels; both ends included
_SIZES = ((0, SMALL_AREA), (SMALL_AREA, MEDIUM_AREA), (MEDIUM_AREA, np.inf))


@dataclass(frozen=True)
class CocoObjects:
    """The objects of one image, as `true_objects` and `predicted_objects` make them.

    Attributes:
        thing_ids: (N,) contiguous thing ids.
        boxes: (N, 4) float64, half-open XYXY_ABS pixels.
        masks: N RLEs; None where only boxes are scored.
        scores: (N,) float64; 1 for the truth.
        crowd: (N,) bool, group regions; False for predictions.
    """

    thing_ids: np.ndarray
    boxes: np.ndarray
    masks: list[dict[str, Any]] | None
    scores: np.ndarray
    crowd: np.ndarray


@dataclass(frozen=True)
class CocoMatches:
    """What scoring keeps of one image and task.

    Attributes:
        thing_ids: (N,) contiguous thing ids of the detections.
        scores: (N,) float64, falling within each class.
        matched: (A, T, N) bool: the detection has a true object.
        ignored: (A, T, N) bool: it counts neither as right nor as wrong.
        true_counts: (A, C) int64, true objects to find.
    """

    thing_ids: np.ndarray
    scores: np.ndarray
    matched: np.ndarray
    ignored: np.ndarray
    true_counts: np.ndarray


def true_objects(
    found: InstanceTable, instance_ids: np.ndarray | None, table: LabelTable
) -> CocoObjects:
    """The instances of an image; group regions are crowd.

    Args:
        found: the instances.
        instance_ids: (H, W) map that they stand in; None leaves the masks out.
        table: the classes.
    """
    masks = None
    if instance_ids is not None:
        masks = [
            encode_crop(instance_ids[y1:y2, x1:x2] == number, y1, x1, instance_ids.shape)
            for number, (x1, y1, x2, y2) in zip(found.ids, found.boxes.tolist(), strict=True)
        ]
    return CocoObjects(
        thing_ids=table.thing_id_of_train[found.classes],
        boxes=found.boxes.astype(np.float64),
        masks=masks,
        scores=np.ones(len(found)),
        crowd=found.crowd,
    )


def predicted_objects(
    boxes: np.ndarray, thing_ids: np.ndarray, scores: np.ndarray, masks: np.ndarray | None
) -> CocoObjects:
    """The detections of an image.

    Args:
        boxes: (N, 4) half-open XYXY_ABS pixels.
        thing_ids: (N,) contiguous thing ids.
        scores: (N,).
        masks: (N, H, W) bool; None leaves the masks out.
    """
    return CocoObjects(
        thing_ids=thing_ids,
        boxes=boxes.astype(np.float64),
        masks=None if masks is None else [encode_mask(mask) for mask in masks],
        scores=scores.astype(np.float64),
        crowd=np.zeros(len(scores), dtype=bool),
    )


def match_objects(
    truth: CocoObjects, predictions: CocoObjects, task: str, table: LabelTable
) -> CocoMatches:
    """Find the true object of each detection of one image.

    Args:
        truth: the true objects.
        predictions: the detections.
        task: "bbox", or "segm", for which both need masks.
        table: the classes.
    """
    num_classes = len(table.things)
    to_find = _area_groups(truth, task) & ~truth.crowd
    chosen, matched, spared = [], [], []
    for c in range(num_classes):
        own = np.flatnonzero(predictions.thing_ids == c)
        own = own[np.argsort(-predictions.scores[own], kind="stable")][:_MAX_DETECTIONS]
        true = np.flatnonzero(truth.thing_ids == c)
        crowd = truth.crowd[true]
        iou = _overlaps(_shapes(predictions, own, task), _shapes(truth, true, task), crowd)
        class_matched, class_spared = _match(iou, to_find[:, true], crowd)
        chosen.append(own)
        matched.append(class_matched)
        spared.append(class_spared)
    rows = np.concatenate(chosen)
    has_object = np.concatenate(matched, axis=-1)
    other_size = ~_area_groups(predictions, task)[:, None, rows]
    return CocoMatches(
        thing_ids=predictions.thing_ids[rows],
        scores=predictions.scores[rows],
        matched=has_object,
        ignored=np.concatenate(spared, axis=-1) | (~has_object & other_size),
        true_counts=np.stack(
            [np.bincount(truth.thing_ids[group], minlength=num_classes) for group in to_find]
        ),
    )


def _area_groups(objects: CocoObjects, task: str) -> np.ndarray:
    """(A, N) bool: the objects of each area group, in the order of `AREA_GROUPS`."""
    if task == "segm":
        sides = np.reshape(mask_api.toBbox(objects.masks), (-1, 4))[:, 2:]
        # one by one: pycocotools 2.0.11 fails on a list of more than 255 masks
        pixels = np.array([mask_api.area(mask) for mask in objects.masks or ()])
        areas = [sides.prod(axis=1), pixels]
    else:
        areas = [(objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1)]
    groups = [np.ones(len(objects.scores), dtype=bool)]
    groups += [(low <= area) & (area <= high) for area in areas for low, high in _SIZES]
    return np.stack(groups)


def _shapes(objects: CocoObjects, rows: np.ndarray, task: str) -> list[dict] | np.ndarray:
    """RLEs, or (K, 4) boxes as x, y, width, height, of K rows."""
    if task == "segm":
        assert objects.masks is not None
        return [objects.masks[row] for row in rows]
    boxes = objects.boxes[rows]
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _overlaps(
    predicted: list[dict] | np.ndarray, true: list[dict] | np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """(D, G) IoU of shapes; with a crowd, the part of the detection that lies on it."""
    if len(predicted) == 0 or len(true) == 0:
        return np.zeros((len(predicted), len(true)))
    return mask_api.iou(predicted, true, crowd.astype(np.uint8).tolist())


def _match(iou: np.ndarray, to_find: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, ...]:
    """Match the detections of one class, best score first, to its true objects.

    Args:
        iou: (D, G).
        to_find: (A, G) bool; the others are ignored.
        crowd: (G,) bool.

    Returns:
        (A, T, D) bool twice: which detections have an object, and which an ignored one.
    """
    matched = np.zeros((len(to_find), len(_THRESHOLDS), len(iou)), dtype=bool)
    spared = matched.copy()
    pairs = np.nonzero(iou >= _THRESHOLDS[0])
    # detection -> the objects it may take, most overlap first, of equal ones the last
    choices: dict[int, list[tuple[float, int]]] = {}
    for d, overlap, g in sorted(
        zip(pairs[0].tolist(), iou[pairs].tolist(), pairs[1].tolist(), strict=True),
        key=lambda pair: (pair[0], -pair[1], -pair[2]),
    ):
        choices.setdefault(d, []).append((overlap, g))
    crowds = set(np.flatnonzero(crowd).tolist())
    for a, group in enumerate(to_find.tolist()):
        for t, threshold in enumerate(_THRESHOLDS.tolist()):
            taken: set[int] = set()
            for d, wanted in choices.items():
                free = [g for overlap, g in wanted if overlap >= threshold and g not in taken]
                if free:
                    g = next((g for g in free if group[g]), free[0])
                    matched[a, t, d] = True
                    spared[a, t, d] = not group[g]
                    if g not in crowds:
                        taken.add(g)
    return matched, spared
