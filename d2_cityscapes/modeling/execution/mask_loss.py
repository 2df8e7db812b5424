"""The loss of a mask head without a wait for the GPU.

Detectron2's asks the GPU for numbers of its log in the middle of the step, four times, and for an
index that it has made on the CPU, forward and backward. Here the numbers of the log are read when
they are there, and the rest stays on the device. Losses, gradients and logged numbers are the same,
to the bit.

Shape letters: R regions (RoIs of all images together), K thing classes, S the side of a mask in
cells.
"""

from __future__ import annotations

import torch
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, MaskRCNNConvUpsampleHead
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.modeling.execution.deferred_scalars import read_later

__all__ = ["WaitFreeConvUpsampleHead", "WaitFreeMaskLoss", "mask_rcnn_loss", "mask_targets"]


def mask_targets(instances: list[Instances], side: int, device: torch.device) -> Tensor:
    """(R, S, S) targets, bool unless masks of another kind than ours give others.

    Args:
        instances: the R regions by image, one at least, with "gt_masks" and "proposal_boxes".
        side: S.
        device: of the targets.
    """
    every = [i.gt_masks.crop_and_resize(i.proposal_boxes.tensor, side) for i in instances if len(i)]
    return torch.cat([targets.to(device) for targets in every])


def mask_rcnn_loss(logits: Tensor, instances: list[Instances], vis_period: int = 0) -> Tensor:
    """`detectron2.modeling.roi_heads.mask_head.mask_rcnn_loss`, for which nobody waits.

    Accuracy and shares of false cells reach the log as `read_later` does it.

    Args:
        logits: (R, K, S, S), or (R, 1, S, S) where masks are class-agnostic.
        instances: the R regions by image, with "gt_classes", "gt_masks" and "proposal_boxes"; with
            "gt_weights" (., ) float32 the loss is the mean of weight times loss.
        vis_period: predictions and targets go to the event storage as pictures every so many
            iterations; 0 for never.

    Returns:
        A scalar, 0 with a graph if there are no regions.
    """
    instances = [i for i in instances if len(i) > 0]
    if not instances:
        return logits.sum() * 0
    targets = mask_targets(instances, logits.shape[2], logits.device)
    if logits.shape[1] == 1:
        chosen = logits[:, 0]
    else:
        classes = torch.cat([i.gt_classes for i in instances]).to(torch.int64)
        chosen = logits[torch.arange(len(logits), device=logits.device), classes]
    inside = targets if targets.dtype == torch.bool else targets > 0.5
    targets = targets.to(torch.float32)
    _log_accuracy(chosen, inside)
    if vis_period > 0 and get_event_storage().iter % vis_period == 0:
        _draw(chosen, targets)
    if instances[0].has("gt_weights"):  # see `d2_cityscapes.modeling.small_instances`
        cells = F.binary_cross_entropy_with_logits(chosen, targets, reduction="none")
        return (cells.mean(dim=(1, 2)) * torch.cat([i.gt_weights for i in instances])).mean()
    return F.binary_cross_entropy_with_logits(chosen, targets, reduction="mean")


def _log_accuracy(logits: Tensor, inside: Tensor) -> None:
    """Detectron2's three numbers, of (R, S, S) logits and bool targets."""
    wrong = (logits > 0) != inside
    cells = wrong.numel()

    def put(numbers: list[float]) -> None:
        inner, errors, missed = map(int, numbers)
        storage = get_event_storage()
        storage.put_scalar("mask_rcnn/accuracy", 1 - errors / max(cells, 1.0))
        storage.put_scalar("mask_rcnn/false_positive", (errors - missed) / max(cells - inner, 1.0))
        storage.put_scalar("mask_rcnn/false_negative", missed / max(inner, 1.0))

    # as float32 they are exact up to 2**24, twenty times 1024 regions
    read_later(torch.stack([inside.sum(), wrong.sum(), (wrong & inside).sum()]), put)


def _draw(logits: Tensor, targets: Tensor) -> None:
    pictures = torch.cat([logits.detach().sigmoid(), targets], dim=2)
    for number, picture in enumerate(pictures):
        get_event_storage().put_image(
            f"Left: mask prediction;   Right: mask GT ({number})", picture.expand(3, -1, -1)
        )


class WaitFreeMaskLoss(BaseMaskRCNNHead):
    """A stock mask head, in front of whose class this one stands, with `mask_rcnn_loss` of here."""

    def forward(self, x: Tensor, instances: list[Instances]) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            return super().forward(x, instances)
        loss = mask_rcnn_loss(self.layers(x), instances, self.vis_period)
        return {"loss_mask": loss * self.loss_weight}


class WaitFreeConvUpsampleHead(WaitFreeMaskLoss, MaskRCNNConvUpsampleHead):
    """The stock mask head, likewise."""
