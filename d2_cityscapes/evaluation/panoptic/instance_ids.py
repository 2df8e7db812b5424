"""What models predict, as maps of ids: the forms that are scored, drawn and submitted.

Shape letters: H, W pixels; N detections; C classes.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from d2_cityscapes.evaluation.detections import check_detections, detections_of
from d2_cityscapes.evaluation.panoptic.map_scores import (
    InvalidMapError,
    as_map,
    check_train_ids,
    starts_of_runs,
)
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, LabelClass, LabelTable
from d2_cityscapes.layers.best_classes import best_classes
from d2_cityscapes.structures.cropped_masks import CroppedMasks

__all__ = [
    "ids_of_detections",
    "ids_of_output",
    "ids_of_panoptic",
    "ids_of_train_ids",
    "train_ids_of_sem_seg",
]

_VOID = -1  # beside 0


def ids_of_output(
    output: dict[str, Any], table: LabelTable = CITYSCAPES, *, score_threshold: float = 0.5
) -> np.ndarray:
    """(H, W) int32 instance ids of what a model predicts for an image, in its richest form.

    That is panoptic, else instances of at least the least score, painted as boxes where they have
    no masks, else semantics, in plain label ids.

    Args:
        output: one of the dicts that a Detectron2 model returns.
        table: the classes.
        score_threshold: the least score of instances that are not panoptic.

    Raises:
        InvalidMapError: what the classes do not have a place for.
    """
    if "panoptic_seg" in output:
        panoptic, segments_info = output["panoptic_seg"]
        return ids_of_panoptic(panoptic, segments_info, table)
    if "instances" not in output:
        return ids_of_train_ids(train_ids_of_sem_seg(output["sem_seg"], table), table)
    found = output["instances"].to("cpu")
    detections = detections_of(found, table)
    if found.has("pred_masks"):
        masks = found.pred_masks
        masks = masks if isinstance(masks, CroppedMasks) else masks.numpy()
    else:
        height, width = found.image_size
        y, x = torch.arange(height)[:, None], torch.arange(width)
        boxes = torch.from_numpy(detections.boxes)
        left, top, right, bottom = boxes[:, :, None, None].unbind(dim=1)
        masks = ((x >= left) & (x < right) & (y >= top) & (y < bottom)).numpy()
    return ids_of_detections(
        masks, detections.thing_ids, detections.scores, table, score_threshold=score_threshold
    )


def ids_of_panoptic(
    panoptic: Any, segments_info: Sequence[Mapping[str, Any]] | None, table: LabelTable = CITYSCAPES
) -> np.ndarray:
    """(H, W) int32 instance ids of Detectron2's panoptic format.

    Args:
        panoptic: (H, W) integer segment ids, numpy or torch on any device. Void are -1, as
            Panoptic-DeepLab has it, and 0, unless a segment of that id is listed.
        segments_info: one dict for each segment, with its "id" and its train id "category_id". None
            where ids are category_id * 1000 + k and void is -1, as Detectron2's own
            Panoptic-DeepLab returns them.
        table: the classes.

    Raises:
        InvalidMapError: the map is not of integers, or has a segment without a dict; a segment is
            listed twice, or its category is none of the table; or a class has too many instances.
    """
    segments = as_map(panoptic, "panoptic prediction")
    flat = segments.ravel()
    starts = starts_of_runs(flat)
    values, which = np.unique(flat[starts], return_inverse=True)
    if segments_info is None:
        listed = [(v, v // INSTANCE_DIVISOR) for v in values.tolist() if v != _VOID]
        ids: dict[int, int] = {}
    else:
        listed = [_number_and_category(segment, table) for segment in segments_info]
        ids = {} if any(number == 0 for number, _ in listed) else {0: 0}
    ids[_VOID] = 0
    counts: Counter[int] = Counter()
    for number, category in listed:
        if not 0 <= category < len(table.classes):
            raise _wrong_category(number, category, table)
        if number in ids:
            raise InvalidMapError(f"panoptic prediction: segment {number} is void or listed twice")
        ids[number] = _encode(table.classes[category], counts[category])
        counts[category] += 1
    missing = [v for v in values.tolist() if v not in ids]
    if missing:
        raise InvalidMapError(
            f"panoptic prediction: segments {missing[:5]} are not in its info list"
        )
    found = np.array([ids[v] for v in values.tolist()], dtype=np.int32)[which.reshape(-1)]
    return np.repeat(found, np.diff(starts, append=flat.size)).reshape(segments.shape)


def ids_of_detections(
    masks: np.ndarray | CroppedMasks,
    thing_ids: np.ndarray,
    scores: np.ndarray,
    table: LabelTable = CITYSCAPES,
    *,
    score_threshold: float = 0.5,
) -> np.ndarray:
    """(H, W) int32 instance ids of detections painted over each other, the best score on top.

    Pixels of no detection are 0.

    Args:
        masks: (N, H, W) bool.
        thing_ids: (N,) contiguous thing ids.
        scores: (N,); those below the threshold are left out.
        table: the classes.
        score_threshold: the least score.

    Raises:
        InvalidMapError: classes that the table does not have, or scores that are no numbers.
    """
    check_detections(thing_ids, scores, table)
    ids = np.zeros(masks.shape[1:], dtype=np.int32)
    kept = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= score_threshold]
    for number, i in reversed(list(enumerate(kept))):
        value = _encode(table.things[thing_ids[i]], number)
        if isinstance(masks, CroppedMasks):
            crop = masks.crop(i)
            ids[crop.place][crop.pixels] = value
        else:
            ids[masks[i]] = value
    return ids


def ids_of_train_ids(train_ids: np.ndarray, table: LabelTable = CITYSCAPES) -> np.ndarray:
    """(H, W) int32 plain label ids of an (H, W) map of train ids; 255 becomes 0.

    Raises:
        InvalidMapError: other values.
    """
    train_ids = as_map(train_ids, "map of train ids")
    check_train_ids(train_ids, table, "map of train ids")
    return table.label_id_of_train[train_ids]


def train_ids_of_sem_seg(sem_seg: torch.Tensor, table: LabelTable = CITYSCAPES) -> np.ndarray:
    """(H, W) integer train ids of a semantic prediction on any device.

    Args:
        sem_seg: (C, H, W) scores, where the first of equal classes wins, or an (H, W) map of train
            ids, which is returned as it is.
        table: the classes.

    Raises:
        InvalidMapError: scores of another number of classes, or nan among them.
    """
    if sem_seg.dim() != 3:
        return sem_seg.cpu().numpy()
    if len(sem_seg) != len(table.classes):
        raise InvalidMapError(
            f"scores are {tuple(sem_seg.shape)}, expected {len(table.classes)} classes"
        )
    if sem_seg.isnan().any():
        raise InvalidMapError("scores: nan among them, so the model has diverged")
    return best_classes(sem_seg).cpu().numpy()


def _number_and_category(segment: Mapping[str, Any], table: LabelTable) -> tuple[int, int]:
    """Id and train id of a segment of an info list."""
    try:
        number, category = operator.index(segment["id"]), segment["category_id"]
    except (KeyError, TypeError) as error:
        raise InvalidMapError(
            "panoptic prediction: a segment of the info list has no integer id, or no category_id"
        ) from error
    try:
        train_id = operator.index(category)
    except TypeError as error:
        raise _wrong_category(number, category, table) from error
    thing = segment.get("isthing")
    if thing is not None and 0 <= train_id < len(table.classes):
        c = table.classes[train_id]
        if bool(thing) != c.is_thing:
            raise InvalidMapError(
                f"panoptic prediction: segment {number} has isthing {bool(thing)} and category_id "
                f"{train_id}, but {c.name} is {'a thing' if c.is_thing else 'stuff'}; categories "
                "are train ids, for things and stuff alike"
            )
    return number, train_id


def _wrong_category(number: int, category: object, table: LabelTable) -> InvalidMapError:
    return InvalidMapError(
        f"panoptic prediction: segment {number} has the category_id {category!r}; expected train "
        f"ids of the {table.name} labels, 0 to {len(table.classes) - 1}"
    )


def _encode(c: LabelClass, number: int) -> int:
    """Instance id of a class's segment, the number-th (from 0) of its image."""
    if not c.is_thing:
        return c.label_id
    if number >= INSTANCE_DIVISOR:
        raise InvalidMapError(
            f"more than {INSTANCE_DIVISOR} predicted instances of one class ({c.name}) in an image "
            "do not fit the encoding; lower TEST.DETECTIONS_PER_IMAGE"
        )
    return c.label_id * INSTANCE_DIVISOR + number
