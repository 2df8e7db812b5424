"""Panoptic segmentation in one model: shared backbone, instance heads, semantic head and fusion."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN
from detectron2.structures import Instances
from torch import Tensor, nn

from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.modeling.box_head import GIOU_LOSS, scale_losses
from d2_cityscapes.modeling.classes import check_num_classes
from d2_cityscapes.modeling.freezing.guard import KeepsFrozen
from d2_cityscapes.modeling.options import nothing, put_into_force
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.panoptic.postprocessing import (
    CROPPED,
    postprocess_instances,
    resize_scores,
    resize_to_labels,
)
from d2_cityscapes.modeling.panoptic.semantic_head import MiniDLSemSegHead
from d2_cityscapes.modeling.small_instances import are_weighted, weighted_semantic_losses
from d2_cityscapes.modeling.void import zero_if_void

__all__ = ["SeamlessPanoptic"]


@META_ARCH_REGISTRY.register()
class SeamlessPanoptic(KeepsFrozen, PanopticFPN):
    """Detectron2's `PanopticFPN` on the train ids of a street dataset, fused with `fuse_panoptic`.

    It trains as `PanopticFPN` does, on "instances" (thing ids, of Cityscapes 0..7) and "sem_seg"
    (train ids, of Cityscapes 0..18, things and stuff alike, 255 ignored). `PanopticFPN` itself
    fuses only if all things are semantic class 0.

    Its parts make it the network of Porzi et al., "Seamless Scene Segmentation", CVPR 2019:
    "build_seamless_resnet_fpn_backbone", "SeamlessRPNHead", "SeamlessROIHeads" with
    "SeamlessBoxHead" and "SeamlessMaskHead", and "MiniDLSemSegHead". With those of Detectron2 it is
    a Panoptic FPN. The losses are added, each with the weight that Detectron2 has for it
    (MODEL.SEM_SEG_HEAD.LOSS_WEIGHT, ...); PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT is a factor of every
    loss of the RoI heads, of which Detectron2 leaves out that of the classes.
    """

    @configurable
    def __init__(
        self,
        *,
        combine: bool = True,
        sem_seg_scores: bool = True,
        table: LabelTable = CITYSCAPES,
        complete: Callable[[nn.Module], None] = nothing,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            combine: whether inference fuses (MODEL.PANOPTIC_FPN.COMBINE.ENABLED).
            sem_seg_scores: whether inference gives semantic scores, else classes
                (TEST.SEM_SEG_SCORES).
            table: the classes: those of the configured datasets.
            complete: called with the model when it has all its parts.
            kwargs: the arguments of `PanopticFPN`.
        """
        super().__init__(**kwargs)
        self.combine = combine
        self.sem_seg_scores = sem_seg_scores
        self.table = table
        complete(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        table = label_table_of(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
        check_num_classes(cfg, table, cfg.DATASETS.TRAIN or cfg.DATASETS.TEST)
        if not cfg.MODEL.MASK_ON:
            raise D2CityscapesError("MODEL.MASK_ON is False; SeamlessPanoptic needs True")
        own = {
            "table": table,
            "combine": cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED,
            "sem_seg_scores": cfg.TEST.SEM_SEG_SCORES,
            "complete": partial(put_into_force, cfg),
        }
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = True  # PanopticFPN warns that it ignores False
        parts = super().from_config(cfg)
        scale_losses(parts["sem_seg_head"], 1 - cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT)
        weight = cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT
        if weight != 1:  # Detectron2 leaves the loss of the classes out, and does not know of GIoU
            predictor = parts["roi_heads"].box_predictor
            others = {"loss_cls": weight, GIOU_LOSS: weight}
            predictor.loss_weight = {**others, **predictor.loss_weight}
        return {**parts, **own}

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses by name in training, else what `inference` returns.

        `MiniDLSemSegHead` gets the semantic target of each image at its own size: it averages over
        a part of all pixels, among which padding must not count.
        """
        weighted = are_weighted(batched_inputs)
        if not self.training or not (weighted or isinstance(self.sem_seg_head, MiniDLSemSegHead)):
            output = super().forward(batched_inputs)
            if not self.training:
                return output
            return zero_if_void(output, batched_inputs, self.sem_seg_head)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        if weighted:
            head = self.sem_seg_head
            losses = weighted_semantic_losses(head, features, batched_inputs, self.device)
        else:
            classes = [x["sem_seg"].to(self.device) for x in batched_inputs]
            _, losses = self.sem_seg_head(features, classes)
        proposals, rpn_losses = self.proposal_generator(images, features, instances)
        _, roi_losses = self.roi_heads(images, features, proposals, instances)
        return {**losses, **rpn_losses, **roi_losses}

    def inference(
        self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True
    ) -> list[dict[str, Any]]:
        """Predict.

        Args:
            batched_inputs: "image" (3, h, w), and "height" and "width" of the wanted output.
            do_postprocess: False returns the raw (Instances, logits) lists, as `PanopticFPN` does.

        Returns:
            For each image "sem_seg" (C, H, W) logits, or if these are not wanted (H, W) uint8 train
            ids, "instances", and "panoptic_seg" (what `fuse_panoptic` returns) unless `combine` is
            off.
        """
        if not do_postprocess:
            return super().inference(batched_inputs, do_postprocess=False)
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        logits = self._logits(features)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)
        padded_size = tuple(images.tensor.shape[-2:])
        return [
            self._postprocess(*row, padded_size)
            for row in zip(batched_inputs, detections, logits, strict=True)
        ]

    def semantic_scores(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """(C, H, W) logits of each image, and nothing else; inputs as for `inference`."""
        images = self.preprocess_image(batched_inputs)
        logits = self.sem_seg_head(self.backbone(images.tensor), None)[0]
        return [
            resize_scores(own, *_sizes(inputs))
            for own, inputs in zip(logits, batched_inputs, strict=True)
        ]

    def combined(self, sem_seg: Tensor, instances: Instances) -> dict[str, Any]:
        """What `inference` gives for an image, of its semantics and its instances.

        Args:
            sem_seg: (C, H, W) scores or (H, W) train ids.
            instances: with (H, W) masks.
        """
        result: dict[str, Any] = {"sem_seg": sem_seg, "instances": instances}
        if self.combine:
            result["panoptic_seg"] = fuse_panoptic(
                sem_seg,
                instances,
                overlap_threshold=self.combine_overlap_thresh,
                score_threshold=self.combine_instances_score_thresh,
                stuff_area_limit=self.combine_stuff_area_thresh,
                table=self.table,
            )
        return result

    def _logits(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """(N, C, ., .) of the padded batch, or for classes only as coarse as in the head."""
        head = self.sem_seg_head
        if self.sem_seg_scores or not hasattr(head, "layers"):
            return head(features, None)[0]
        return head.layers(features)

    def _postprocess(
        self,
        inputs: dict[str, Any],
        detections: Instances,
        logits: torch.Tensor,
        padded_size: tuple[int, int],
    ) -> dict[str, Any]:
        image_size, size = _sizes(inputs)
        if self.sem_seg_scores:
            sem_seg = resize_scores(logits, image_size, size)
        else:
            sem_seg = resize_to_labels(logits, padded_size, image_size, size)
        cropped = inputs.get(CROPPED, False)
        return self.combined(sem_seg, postprocess_instances(detections, size, cropped=cropped))


def _sizes(inputs: dict[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of the image, and of the wanted output."""
    height, width = inputs["image"].shape[-2:]
    return (height, width), (inputs.get("height", height), inputs.get("width", width))
