"""Boxes within a graph: anchors, the best of each level, and what suppresses what.

Shape letters: A anchors of a cell, N boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

__all__ = ["anchors_of_map", "clipped", "kept_by_class", "nonempty", "strongest"]


def anchors_of_map(
    cell_anchors: Tensor, size: tuple[int, int], steps: tuple[int, int], offset: float
) -> Tensor:
    """(h * w * A, 4) XYXY pixels of the network's input, cell by cell.

    Args:
        cell_anchors: (A, 4) around a cell's corner.
        size: (h, w) of the map.
        steps: pixels between two cells, down and to the right.
        offset: of the centre, in cells.
    """
    y, x = (
        (torch.arange(number, dtype=torch.float32) + offset) * step
        for number, step in zip(size, steps, strict=True)
    )
    y, x = y[:, None].expand(size), x[None].expand(size)
    shifts = torch.stack([x, y, x, y], dim=2)
    return (shifts[:, :, None] + cell_anchors).reshape(-1, 4)


def clipped(boxes: Tensor, limits: Tensor) -> Tensor:
    """(N, 4) boxes inside of the picture.

    Args:
        boxes: XYXY.
        limits: (2,) h, w.
    """
    height, width = limits.float().unbind()
    most = torch.stack([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), most)


def nonempty(boxes: Tensor, least: float = 0.0) -> Tensor:
    """(M,) indices of boxes with sides above `least`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.nonzero((sides > least).all(dim=1)).squeeze(1)


def strongest(scores: Tensor, most: int) -> Tensor:
    """Indices of the `most` highest scores (or all), in descending order.

    Args:
        scores: (N,), where N may be known only when the graph runs.
        most: a number.
    """
    return scores.argsort(descending=True)[:most]


def kept_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Indices of what non-maximum suppression leaves within each class, best first.

    Boxes of different classes are moved apart, as torchvision's `batched_nms` does it.

    Args:
        boxes: (N, 4).
        scores, classes: (N,).
        threshold: the largest overlap (IoU) with a better one.
    """
    apart = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    return nms(boxes + classes[:, None].to(boxes.dtype) * apart, scores, threshold)
