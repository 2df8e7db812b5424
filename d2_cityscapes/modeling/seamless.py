"""Panoptic segmentation in one model: shared backbone, instance heads, semantic head and fusion."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Instances

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.fusion import fuse_panoptic

__all__ = ["SeamlessPanoptic"]


@META_ARCH_REGISTRY.register()
class SeamlessPanoptic(PanopticFPN):
    """Detectron2's `PanopticFPN` on Cityscapes train ids, fused with `fuse_panoptic`.

    It trains as `PanopticFPN` does, on "instances" (thing ids 0..7) and "sem_seg" (train ids 0..18,
    things and stuff alike, 255 ignored). `PanopticFPN` itself fuses only if all things are semantic
    class 0.
    """

    @configurable
    def __init__(self, *, combine: bool = True, **kwargs):
        """
        Args:
            combine: whether inference fuses (MODEL.PANOPTIC_FPN.COMBINE.ENABLED).
            kwargs: the arguments of `PanopticFPN`.
        """
        super().__init__(**kwargs)
        self.combine = combine

    @classmethod
    def from_config(cls, cfg):
        _check(cfg)
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = True  # PanopticFPN warns that it ignores False
        return {**super().from_config(cfg), "combine": combine}

    def inference(self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True):
        """Predict.

        Args:
            batched_inputs: "image" (3, h, w), and "height" and "width" of the wanted output.
            do_postprocess: False returns the raw (Instances, logits) lists, as `PanopticFPN` does.

        Returns:
            For each image "sem_seg" (C, H, W) logits, "instances", and "panoptic_seg" (what
            `fuse_panoptic` returns) unless `combine` is off.
        """
        detections, logits = super().inference(batched_inputs, do_postprocess=False)
        if not do_postprocess:
            return detections, logits
        return [
            self._postprocess(*row) for row in zip(batched_inputs, detections, logits, strict=True)
        ]

    def _postprocess(
        self, inputs: dict[str, Any], detections: Instances, logits: torch.Tensor
    ) -> dict[str, Any]:
        size = inputs["image"].shape[-2:]
        height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
        result = {
            "sem_seg": sem_seg_postprocess(logits, size, height, width),
            "instances": detector_postprocess(detections, height, width),
        }
        if self.combine:
            result["panoptic_seg"] = fuse_panoptic(
                result["sem_seg"],
                result["instances"],
                overlap_threshold=self.combine_overlap_thresh,
                score_threshold=self.combine_instances_score_thresh,
                stuff_area_limit=self.combine_stuff_area_thresh,
            )
        return result


def _check(cfg) -> None:
    """Refuse a config that would train, but on classes that mean something else."""
    expected = {
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            len(CITYSCAPES.classes),
        ),
        "MODEL.ROI_HEADS.NUM_CLASSES": (cfg.MODEL.ROI_HEADS.NUM_CLASSES, len(CITYSCAPES.things)),
        "MODEL.MASK_ON": (cfg.MODEL.MASK_ON, True),
    }
    for key, (value, wanted) in expected.items():
        if value != wanted:
            raise D2CityscapesError(f"{key} is {value}; SeamlessPanoptic needs {wanted}")
