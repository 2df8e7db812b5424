"""Predictions for the tools of supervision: annotators, trackers, zones.

Shape letters: N objects; H, W pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.structures import Instances

from d2_cityscapes.dependencies import import_extra
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.detections import detections_of
from d2_cityscapes.labels import CITYSCAPES, LabelTable

__all__ = ["to_supervision"]


def to_supervision(
    output: Mapping[str, Any], table: LabelTable = CITYSCAPES, *, score_threshold: float = 0.0
) -> Any:
    """The instances of an output as `supervision.Detections`.

        see = d2c.load("output/stage3")
        found = to_supervision(see(image), see.table, score_threshold=0.5)
        supervision.MaskAnnotator().annotate(image.copy(), found)

    Args:
        output: what a Detectron2 model gives for a picture, with "instances".
        table: the classes.
        score_threshold: the least score of what is taken.

    Returns:
        `supervision.Detections`: xyxy (N, 4) float32 pixels, half-open; mask (N, H, W) bool, or
        None of models without masks; confidence (N,) float32; class_id (N,) thing ids, with their
        names in data["class_name"]. The best score comes first.

    Raises:
        D2CityscapesError: a model that predicts no instances, or supervision is not installed.
    """
    if "instances" not in output:
        raise D2CityscapesError(
            "supervision.Detections are instances, and this model predicts "
            f"{', '.join(output) or 'nothing'}: take one that has instances"
        )
    supervision = import_extra("supervision", "to_supervision")
    found: Instances = output["instances"].to("cpu")
    boxes, things, scores = detections_of(found, table)
    kept = [n for n in np.argsort(-scores, kind="stable").tolist() if scores[n] >= score_threshold]
    masks = None
    if found.has("pred_masks"):
        height, width = found.image_size
        masks = np.zeros((len(kept), height, width), dtype=bool)
        for own, n in zip(masks, kept, strict=True):
            own[:] = found.pred_masks[n].numpy()
    names = np.array([c.name for c in table.things])
    return supervision.Detections(
        xyxy=boxes[kept].reshape(-1, 4).astype(np.float32),
        mask=masks,
        confidence=scores[kept].astype(np.float32),
        class_id=things[kept].astype(np.int64),
        data={"class_name": names[things[kept]]},
    )
