"""Outputs of a Detectron2 model as the arrays that run.py gives, and back for the evaluators.

Shape letters: H, W pixels of the picture; N detections.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic, train_ids_of_sem_seg
from d2_cityscapes.labels import VOID_TRAIN_ID, LabelTable

__all__ = ["as_arrays", "as_output"]


def as_arrays(output: dict[str, Any], table: LabelTable) -> dict[str, Any]:
    """What `d2_cityscapes.export.run` gives, of a model's output for a picture."""
    found: dict[str, Any] = {}
    if "sem_seg" in output:
        found["sem_seg"] = train_ids_of_sem_seg(output["sem_seg"], table)
    if "instances" in output:
        own = output["instances"].to("cpu")
        found["instances"] = {
            "boxes": own.pred_boxes.tensor.numpy(),
            "scores": own.scores.numpy(),
            "classes": own.pred_classes.numpy(),
        }
        if own.has("pred_masks"):
            found["instances"]["masks"] = own.pred_masks.numpy()
    if "panoptic_seg" in output:
        panoptic, segments_info = output["panoptic_seg"]
        found["panoptic_ids"] = ids_of_panoptic(panoptic, segments_info, table)
    return found


def as_output(found: dict[str, Any], size: tuple[int, int], table: LabelTable) -> dict[str, Any]:
    """A model's output for a picture of `size` (H, W), of what run.py gives."""
    output: dict[str, Any] = {}
    if "sem_seg" in found:
        output["sem_seg"] = torch.from_numpy(np.ascontiguousarray(found["sem_seg"]))
    if "instances" in found:
        own = found["instances"]
        output["instances"] = Instances(
            size,
            pred_boxes=Boxes(torch.from_numpy(own["boxes"])),
            scores=torch.from_numpy(own["scores"]),
            pred_classes=torch.from_numpy(own["classes"].astype(np.int64)),
        )
        if "masks" in own:
            output["instances"].pred_masks = torch.from_numpy(own["masks"])
    if "panoptic_ids" in found:
        ids = found["panoptic_ids"]
        segments = []
        for number in np.unique(ids).tolist():
            train_id = int(table.train_id_of[number])
            if train_id != VOID_TRAIN_ID:
                thing = table.classes[train_id].is_thing
                segments.append({"id": number, "category_id": train_id, "isthing": thing})
        output["panoptic_seg"] = torch.from_numpy(ids.astype(np.int32)), segments
    return output
