"""What models predict, as maps of ids: the forms that are scored, drawn and submitted.

Shape letters: H, W pixels; N detections; C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, LabelClass, LabelTable
from d2_cityscapes.layers.best_classes import best_classes

__all__ = [
    "ids_of_detections",
    "ids_of_output",
    "ids_of_panoptic",
    "ids_of_train_ids",
    "train_ids_of_sem_seg",
]


def ids_of_output(output: dict[str, Any], table: LabelTable = CITYSCAPES) -> np.ndarray:
    """(H, W) int32 instance ids of what a model predicts for an image, in its richest form.

    That is panoptic, else instances of a score of at least 0.5, painted as boxes where they have no
    masks, else semantics, in plain label ids.

    Args:
        output: one of the dicts that a Detectron2 model returns.
        table: the classes.
    """
    if "panoptic_seg" in output:
        panoptic, segments_info = output["panoptic_seg"]
        return ids_of_panoptic(panoptic.cpu().numpy(), segments_info, table)
    if "instances" not in output:
        return ids_of_train_ids(train_ids_of_sem_seg(output["sem_seg"], table), table)
    found = output["instances"].to("cpu")
    if found.has("pred_masks"):
        masks = found.pred_masks
    else:
        height, width = found.image_size
        y, x = torch.arange(height)[:, None], torch.arange(width)
        left, top, right, bottom = found.pred_boxes.tensor[:, :, None, None].unbind(dim=1)
        masks = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    classes, scores = found.pred_classes.numpy(), found.scores.numpy()
    return ids_of_detections(masks.numpy(), classes, scores, table)


def ids_of_panoptic(
    panoptic: np.ndarray, segments_info: Sequence[dict[str, Any]], table: LabelTable = CITYSCAPES
) -> np.ndarray:
    """(H, W) int32 instance ids of Detectron2's panoptic format.

    Args:
        panoptic: (H, W) integer segment ids, 0 = void.
        segments_info: one dict for each segment, with its "id" and its train id "category_id".
        table: the classes.

    Raises:
        InvalidMapError: the map has a segment without a dict, or too many instances of a class.
    """
    top = max([int(panoptic.max(initial=0)), *(segment["id"] for segment in segments_info)])
    lookup = np.full(top + 1, -1, dtype=np.int32)
    lookup[0] = 0
    counts: dict[int, int] = {}
    for segment in segments_info:
        c = table.classes[segment["category_id"]]
        number = counts.setdefault(c.train_id, 0)
        counts[c.train_id] += 1
        lookup[segment["id"]] = _encode(c, number)
    ids = lookup[panoptic]
    if ids.min(initial=0) < 0:
        missing = np.unique(panoptic[ids < 0]).tolist()
        raise InvalidMapError(
            f"panoptic prediction: segments {missing[:5]} are not in its info list"
        )
    return ids


def ids_of_detections(
    masks: np.ndarray,
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
    """
    ids = np.zeros(masks.shape[1:], dtype=np.int32)
    kept = [i for i in np.argsort(-scores, kind="stable") if scores[i] >= score_threshold]
    for number, i in reversed(list(enumerate(kept))):
        ids[masks[i]] = _encode(table.things[thing_ids[i]], number)
    return ids


def ids_of_train_ids(train_ids: np.ndarray, table: LabelTable = CITYSCAPES) -> np.ndarray:
    """(H, W) int32 plain label ids of an (H, W) map of train ids; 255 becomes 0."""
    return table.label_id_of_train[train_ids]


def train_ids_of_sem_seg(sem_seg: torch.Tensor, table: LabelTable = CITYSCAPES) -> np.ndarray:
    """(H, W) integer train ids of a semantic prediction on any device.

    Args:
        sem_seg: (C, H, W) scores, where the first of equal classes wins, or an (H, W) map of train
            ids, which is returned as it is.
        table: the classes.

    Raises:
        InvalidMapError: scores of another number of classes.
    """
    if sem_seg.dim() != 3:
        return sem_seg.cpu().numpy()
    if len(sem_seg) != len(table.classes):
        raise InvalidMapError(
            f"scores are {tuple(sem_seg.shape)}, expected {len(table.classes)} classes"
        )
    return best_classes(sem_seg).cpu().numpy()


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
