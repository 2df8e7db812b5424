"""What a model detects in an image, as arrays of classes and numbers that the data can have.

Shape letters: N detections; T thing classes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.labels import LabelTable

__all__ = ["Detections", "check_detections", "detections_of"]


class Detections(NamedTuple):
    """The detections of one image, but for their masks.

    Attributes:
        boxes: (N, 4) float64, half-open XYXY_ABS pixels.
        thing_ids: (N,) contiguous thing ids.
        scores: (N,) float64.
    """

    boxes: np.ndarray
    thing_ids: np.ndarray
    scores: np.ndarray


def detections_of(found: Any, table: LabelTable) -> Detections:
    """The arrays of Detectron2's Instances on the CPU, with pred_boxes, pred_classes and scores.

    Raises:
        InvalidMapError: as `check_detections`.
    """
    detections = Detections(
        found.pred_boxes.tensor.detach().double().numpy(),
        found.pred_classes.numpy(),
        found.scores.detach().double().numpy(),
    )
    check_detections(detections.thing_ids, detections.scores, table, boxes=detections.boxes)
    return detections


def check_detections(
    thing_ids: np.ndarray,
    scores: np.ndarray,
    table: LabelTable,
    *,
    boxes: np.ndarray | None = None,
) -> None:
    """Refuse detections that no evaluation, submission or drawing could take at their word.

    Args:
        thing_ids: (N,) contiguous thing ids, 0..T-1.
        scores: (N,).
        table: the classes.
        boxes: (N, 4), where they matter.

    Raises:
        InvalidMapError: a class that the data do not have, as of a model of COCO's 80, or scores or
            boxes that are nan or infinite.
    """
    number = len(table.things)
    if thing_ids.size and thing_ids.dtype.kind not in "iu":
        raise InvalidMapError(f"detections: classes are {thing_ids.dtype}, expected integers")
    strange = thing_ids[(thing_ids < 0) | (thing_ids >= number)]
    if strange.size:
        raise InvalidMapError(
            f"detections of class {strange[0]}, but {table.name} has {number} thing classes, 0 to "
            f"{number - 1}: use a model of these classes (MODEL.ROI_HEADS.NUM_CLASSES {number}; of "
            "COCO's classes d2c convert coco-to-cityscapes makes them)"
        )
    for name, values in (("score", scores), ("box", boxes)):
        if values is not None and not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)].flat[0]
            raise InvalidMapError(
                f"detections: a {name} is {wrong}, so the model has diverged or its weights are "
                "damaged"
            )
