"""Targets of box regression without the check for which Detectron2 waits."""

from __future__ import annotations

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

__all__ = ["box_deltas"]


def box_deltas(transform: Box2BoxTransform, source: Tensor, target: Tensor) -> Tensor:
    """``transform.get_deltas(source, target)``, bit for bit, for any leading dimensions.

    Args:
        transform: has the weights of the four deltas.
        source: (..., 4) float32 XYXY_ABS boxes, such as anchors, whose sides are above 0: nobody
            looks.
        target: (..., 4) float32, those to turn them into.

    Returns:
        (..., 4) float32 (dx, dy, dw, dh).
    """
    size, target_size = source[..., 2:] - source[..., :2], target[..., 2:] - target[..., :2]
    center = source[..., :2] + 0.5 * size
    target_center = target[..., :2] + 0.5 * target_size
    wx, wy, ww, wh = transform.weights
    shift = target_center - center
    scale = torch.log(target_size / size)
    return torch.stack(
        (
            wx * shift[..., 0] / size[..., 0],
            wy * shift[..., 1] / size[..., 1],
            ww * scale[..., 0],
            wh * scale[..., 1],
        ),
        dim=-1,
    )
