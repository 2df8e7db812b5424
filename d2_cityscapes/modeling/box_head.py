"""ROI heads with a GIoU term: (1 - w) * standard losses + w * GIoU loss, or DIoU, or CIoU.

Shape letters: R RoIs of the mini-batch, F foreground RoIs among them, K thing classes. "Deltas" are
Detectron2's (dx, dy, dw, dh) that turn a proposal into a detection.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.losses import IOU_LOSSES

__all__ = ["GIOU_LOSS", "GIoUOutputLayers", "GIoUROIHeads", "check_giou_weight", "scale_losses"]

GIOU_LOSS = "loss_box_giou"  # in `loss_weight`, of the term whichever loss it is


def check_giou_weight(weight: float) -> None:
    """Raise `D2CityscapesError` unless the weight is in [0, 1]."""
    if not 0 <= weight <= 1:
        raise D2CityscapesError(
            f"MODEL.ROI_BOX_HEAD.GIOU_WEIGHT is {weight}; the w of (1 - w) * standard + w * GIoU "
            "is between 0 and 1"
        )


def scale_losses(part: nn.Module, factor: float) -> None:
    """Multiply Detectron2's ``loss_weight`` of an RPN or a head, a number or one for each loss."""
    weight: Any = part.loss_weight
    if isinstance(weight, dict):
        part.loss_weight = {name: value * factor for name, value in weight.items()}  # type: ignore[assignment]
    else:
        part.loss_weight = weight * factor


class GIoUOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with one more loss, "loss_box_giou" (or "_diou", "_ciou").

    It is the mean, over the foreground RoIs of all images, of 1 - GIoU between the matched truth
    box and the box decoded from the deltas of the truth class; 0, still connected to the
    predictions, where there is no foreground. In place of GIoU any of `IOU_LOSSES`.
    """

    @configurable
    def __init__(self, input_shape: Any, *, iou_loss: str = "giou", **kwargs: Any) -> None:
        """
        Args:
            input_shape: of the features.
            iou_loss: key of `IOU_LOSSES`.
            kwargs: the arguments of `FastRCNNOutputLayers`.
        """
        super().__init__(input_shape, **kwargs)
        self.iou_loss = IOU_LOSSES[iou_loss]
        self.loss_name = f"loss_box_{iou_loss}"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        kind = cfg.MODEL.ROI_BOX_HEAD.IOU_LOSS
        if kind not in IOU_LOSSES:
            raise D2CityscapesError(
                f"MODEL.ROI_BOX_HEAD.IOU_LOSS {kind!r}: use {' or '.join(IOU_LOSSES)}"
            )
        return {**super().from_config(cfg, input_shape), "iou_loss": kind}

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """As in Detectron2; `predictions` are (R, K + 1) logits and (R, K * 4) or (R, 4) deltas."""
        losses = super().losses(predictions, proposals)
        weight = self.loss_weight.get(GIOU_LOSS, 1.0)
        losses[self.loss_name] = self._iou_term(predictions[1], proposals) * weight
        return losses

    def _iou_term(self, deltas: Tensor, proposals: list[Instances]) -> Tensor:
        if not proposals:
            return deltas.sum() * 0
        classes = cat([p.gt_classes for p in proposals])
        boxes = cat([p.proposal_boxes.tensor for p in proposals])
        truth = cat([_matched_boxes(p).tensor for p in proposals])
        # Over all R boxes: the host would wait for the number of those of the foreground.
        foreground = (classes >= 0) & (classes < self.num_classes)
        if deltas.shape[1] != 4:  # neither class-agnostic regression nor a single class
            own = classes.clamp(0, self.num_classes - 1)[:, None, None].expand(-1, 1, 4)
            deltas = deltas.view(-1, self.num_classes, 4).gather(1, own)[:, 0]
        # first, so that no gradient of a background box is 0 * infinity
        deltas = torch.where(foreground[:, None], deltas, 0)
        with torch.autocast(deltas.device.type, enabled=False):
            # apply_deltas works in float32 and clamps dw and dh before exp, as at inference.
            decoded = self.box2box_transform.apply_deltas(deltas, boxes)
            loss = torch.where(foreground, self.iou_loss(decoded, truth), 0)
            return loss.sum() / foreground.sum().clamp(min=1)


def _matched_boxes(proposals: Instances) -> Boxes:
    """The truth box of each proposal; any box where an image has none, as all is background."""
    return proposals.gt_boxes if proposals.has("gt_boxes") else proposals.proposal_boxes


@ROI_HEADS_REGISTRY.register()
class GIoUROIHeads(StandardROIHeads):
    """`StandardROIHeads` whose losses become (1 - w) * each standard loss and w * the GIoU loss.

    With w = 0 it is `StandardROIHeads`, bit for bit. Built from a config, it also gives the RPN of
    the model that it becomes a part of its (1 - w), whoever builds that; `SeamlessPanoptic` does so
    for its semantic head. *Every* standard loss is then (1 - w) times stock.
    """

    @configurable
    def __init__(
        self, *, giou_weight: float = 0.0, weights_rpn: bool = False, **kwargs: Any
    ) -> None:
        """
        Args:
            giou_weight: w, in [0, 1]. Above 0, `box_predictor` must be a `GIoUOutputLayers`.
            weights_rpn: whether the RPN beside these heads gets its (1 - w) from them.
            kwargs: the arguments of `StandardROIHeads`.
        """
        super().__init__(**kwargs)
        check_giou_weight(giou_weight)
        if giou_weight > 0 and not isinstance(self.box_predictor, GIoUOutputLayers):
            raise ValueError("giou_weight > 0 needs a box_predictor of type GIoUOutputLayers")
        self.giou_weight = giou_weight
        if weights_rpn and giou_weight > 0:
            _weight_rpn_beside(self)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "giou_weight": cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT,
            "weights_rpn": True,
        }

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: Any) -> dict[str, Any]:
        parts = super()._init_box_head(cfg, input_shape)
        if cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT > 0:
            # Same weights and same random state as stock: runs that differ in w alone start alike.
            stock = parts["box_predictor"]
            with torch.random.fork_rng(devices=[]):
                parts["box_predictor"] = GIoUOutputLayers(cfg, parts["box_head"].output_shape)
            parts["box_predictor"].load_state_dict(stock.state_dict())
        return parts

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """See `StandardROIHeads.forward`."""
        instances, losses = super().forward(images, features, proposals, targets)
        if self.training and self.giou_weight > 0:
            w, own = self.giou_weight, self.box_predictor.loss_name
            losses = {k: v * (w if k == own else 1 - w) for k, v in losses.items()}
        return instances, losses


def _weight_rpn_beside(heads: GIoUROIHeads) -> None:
    """Scale the losses of the RPN of a model as soon as these heads are placed in it.

    Detectron2 builds RPN and heads apart and shows neither the other, so PyTorch has to tell when
    they come together.
    """
    placed = weakref.ref(heads)

    def look(model: nn.Module, name: str, part: nn.Module) -> None:
        if part is placed():
            handle.remove()
            rpn = getattr(model, "proposal_generator", None)
            if rpn is not None:
                scale_losses(rpn, 1 - heads_weight)

    heads_weight = heads.giou_weight
    handle = register_module_module_registration_hook(look)
    weakref.finalize(heads, handle.remove)
