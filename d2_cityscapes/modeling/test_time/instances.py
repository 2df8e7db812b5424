"""Boxes and masks of a picture seen in several sizes, and mirrored: Detectron2's own."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Instances

from d2_cityscapes.modeling.panoptic.postprocessing import CROPPED, postprocess_instances

__all__ = ["InstanceViews"]


class InstanceViews(GeneralizedRCNNWithTTA):
    """`GeneralizedRCNNWithTTA`: boxes of all views in one NMS, the masks of these averaged.

    It takes any `GeneralizedRCNN`, `SeamlessPanoptic` among them, looks at one view at a time, and
    pastes masks as `StagedRCNN` does.
    """

    model: GeneralizedRCNN

    def __init__(
        self, cfg: CfgNode, model: GeneralizedRCNN, views: DatasetMapperTTA | None = None
    ) -> None:
        """
        Args:
            cfg: of the model.
            model: not data-parallel.
            views: from an input to those of its views; None for those of the config.
        """
        super().__init__(cfg, model, views, batch_size=1)
        self.train(model.training)

    @torch.no_grad()
    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Instances]:
        size = (input["height"], input["width"])
        views, transforms = self._get_augmented_inputs(input)
        with self._turn_off_roi_heads(["mask_on"]):
            boxes = self._get_augmented_boxes(views, transforms)
        found = self._merge_detections(*boxes, size)
        if self.cfg.MODEL.MASK_ON:
            shown = self._rescale_detected_boxes(views, found, transforms)
            outputs = self._batch_inference(views, shown)
            found.pred_masks = self._reduce_pred_masks(outputs, transforms)
            found = postprocess_instances(found, size, cropped=input.get(CROPPED, False))
        return {"instances": found}

    def _batch_inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
    ) -> list[Instances]:
        """One image after the other, by the heads of instances alone."""
        given = detected_instances or [None] * len(batched_inputs)
        return [
            GeneralizedRCNN.inference(
                self.model, [inputs], None if own is None else [own], do_postprocess=False
            )[0]
            for inputs, own in zip(batched_inputs, given, strict=True)
        ]
