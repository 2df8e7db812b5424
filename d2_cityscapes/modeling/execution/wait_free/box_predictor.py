"""Losses of the box head on the foreground that the host has already been told of.

Shape letters: R RoIs of the batch, F foreground RoIs among them, K thing classes.
"""

from __future__ import annotations

import torch
from detectron2.layers import cross_entropy
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor

from d2_cityscapes.modeling.box_head import GIoUOutputLayers
from d2_cityscapes.modeling.execution.deferred_scalars import put_scalar_later
from d2_cityscapes.modeling.execution.wait_free.counted import foreground_numbers, select_foreground
from d2_cityscapes.modeling.execution.wait_free.regression import box_deltas

__all__ = ["WaitFreeGIoUOutputLayers", "WaitFreeOutputLayers"]


class WaitFreeOutputLayers(FastRCNNOutputLayers):
    """`FastRCNNOutputLayers`, with smooth L1, that does not wait for proposals that are counted.

    The same losses, bit for bit.
    """

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """See `FastRCNNOutputLayers`."""
        if foreground_numbers(proposals) is None:
            return super().losses(predictions, proposals)
        scores, deltas = predictions
        classes = torch.cat([image.gt_classes for image in proposals])
        found, rows = select_foreground(proposals, self.num_classes)
        _log_accuracy(scores, classes, rows)
        losses = {
            "loss_cls": cross_entropy(scores, classes, reduction="mean"),
            "loss_box_reg": self._box_loss(deltas[rows], found) / max(len(classes), 1),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _box_loss(self, deltas: Tensor, foreground: list[Instances]) -> Tensor:
        """Sum over the foreground, of whose predictions `deltas` is (F, K * 4) or (F, 4)."""
        boxes = torch.cat([image.proposal_boxes.tensor for image in foreground])
        truth = torch.cat(
            [
                (image.gt_boxes if image.has("gt_boxes") else image.proposal_boxes).tensor
                for image in foreground
            ]
        )
        if deltas.shape[1] != 4:  # a box for each class
            classes = torch.cat([image.gt_classes for image in foreground])
            rows = torch.arange(len(classes), device=classes.device)
            deltas = deltas.view(-1, self.num_classes, 4)[rows, classes]
        wanted = box_deltas(self.box2box_transform, boxes, truth)
        return smooth_l1_loss(deltas, wanted, self.smooth_l1_beta, reduction="sum")


class WaitFreeGIoUOutputLayers(GIoUOutputLayers, WaitFreeOutputLayers):
    """`GIoUOutputLayers`, likewise."""


def _log_accuracy(scores: Tensor, classes: Tensor, foreground: Tensor) -> None:
    """As Detectron2 does: (R, K + 1) logits, (R,) truth, (F,) rows of the foreground."""
    if not len(classes):
        return
    predicted = scores.argmax(dim=1)
    hit = predicted == classes
    put_scalar_later("fast_rcnn/cls_accuracy", hit.float().mean())
    if len(foreground):
        missed = predicted[foreground] == scores.shape[1] - 1
        put_scalar_later("fast_rcnn/fg_cls_accuracy", hit[foreground].float().mean())
        put_scalar_later("fast_rcnn/false_negative", missed.float().mean())
