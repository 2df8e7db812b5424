"""Losses without parameters. Boxes are half-open XYXY; R is the number of box pairs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["giou_loss"]


def giou_loss(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """1 - GIoU of each predicted box and its target, in [0, 2].

    GIoU = IoU - (C - U) / C with U the area of the union and C that of the smallest box around both
    (Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019). Unlike the IoU it has a
    gradient where the boxes do not touch.

    Computed in float32 at least, also under autocast: the area of a 300 px box overflows float16.
    An inverted box (x1 < x0 or y1 < y0) has area 0; two boxes without any area have IoU 0, and if
    they coincide in one point GIoU 0; the gradient is finite in all of these cases.

    Args:
        pred: (R, 4) floating-point boxes.
        target: (R, 4) boxes.
        reduction: "none", "mean" or "sum".

    Returns:
        (R,) losses, or a scalar. The mean and the sum of no boxes are 0, with a gradient of zeros.
    """
    if pred.shape != target.shape or pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(
            f"expected two (R, 4) tensors, got {(*pred.shape,)} and {(*target.shape,)}"
        )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction {reduction!r}; expected none, mean or sum")
    with torch.autocast(pred.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
        loss = 1 - _giou(pred.to(dtype), target.to(dtype))
        if reduction == "none":
            return loss
        return loss.sum() / max(len(loss), 1) if reduction == "mean" else loss.sum()


def _giou(a: Tensor, b: Tensor) -> Tensor:
    intersection = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    union = _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - intersection
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def _area(low: Tensor, high: Tensor) -> Tensor:
    """(R,) areas of the boxes from (R, 2) corners; 0 where a side is not positive."""
    width, height = (high - low).clamp(min=0).unbind(dim=1)
    return width * height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 without a gradient where the whole is 0."""
    empty = whole <= 0
    return torch.where(empty, 0.0, part / torch.where(empty, 1.0, whole))
