"""Boxes matched with objects in bounded memory and without a wait.

Detectron2 makes the IoU of every object with every anchor at once, which peaks at 1.5 GB for 120
objects and the 523,776 anchors of a 1024 x 2048 image, and asks the GPU for the best ones.

Shape letters: G objects, A boxes (anchors, proposals) of one image.
"""

from __future__ import annotations

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor

__all__ = ["match_boxes"]

# Pairs of object and box that are compared at once; at most 16 bytes of memory each.
_PAIRS = 1 << 23


def match_boxes(
    objects: Tensor, boxes: Tensor, matcher: Matcher, *, pairs: int = _PAIRS
) -> tuple[Tensor, Tensor]:
    """``matcher(pairwise_iou(objects, boxes))`` of Detectron2, bit for bit.

    Without its check that no IoU is below 0: that of finite boxes never is.

    Args:
        objects: (G, 4) float32 XYXY_ABS.
        boxes: (A, 4) float32 XYXY_ABS.
        matcher: thresholds, labels, and whether the best boxes of an object always match it.
        pairs: to compare at once.

    Returns:
        (A,) int64, the object of each box, and (A,) int8, the label of this match: 1, 0, or -1 to
        ignore it. Without objects: 0, and the label of no overlap.
    """
    if not len(objects) or not len(boxes):
        matches = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return matches, torch.full_like(matches, matcher.labels[0], dtype=torch.int8)
    parts = boxes.split(max(1, pairs // len(objects)))
    found = [_best(objects, part) for part in parts]
    values = torch.cat([of_boxes.values for of_boxes, _ in found])
    labels = torch.ones_like(values, dtype=torch.int8)
    for label, low, high in zip(
        matcher.labels, matcher.thresholds[:-1], matcher.thresholds[1:], strict=True
    ):
        labels.masked_fill_((values >= low) & (values < high), label)
    if matcher.allow_low_quality_matches:
        best = torch.stack([of_objects for _, of_objects in found]).amax(dim=0)[:, None]
        # computed a second time, rather than kept
        are_best = [(_pairwise_iou(objects, part) == best).any(dim=0) for part in parts]
        labels.masked_fill_(torch.cat(are_best), 1)
    return torch.cat([of_boxes.indices for of_boxes, _ in found]), labels


def _best(objects: Tensor, boxes: Tensor) -> tuple[torch.return_types.max, Tensor]:
    """The largest IoU of each box, with its object, and the (G,) largest of each object."""
    iou = _pairwise_iou(objects, boxes)
    return iou.max(dim=0), iou.amax(dim=1)


def _pairwise_iou(objects: Tensor, boxes: Tensor) -> Tensor:
    """(G, A): Detectron2's `pairwise_iou` of tensors, with each intermediate result in place."""
    inter = _overlap(objects, boxes, 0)
    inter *= _overlap(objects, boxes, 1)
    union = (_area(objects)[:, None] + _area(boxes)).sub_(inter)
    iou = torch.div(inter, union, out=union)
    return iou.masked_fill_(~(inter > 0), 0)


def _overlap(objects: Tensor, boxes: Tensor, axis: int) -> Tensor:
    """(G, A) along x (0) or y (1)."""
    length = torch.minimum(objects[:, None, axis + 2], boxes[:, axis + 2])
    length -= torch.maximum(objects[:, None, axis], boxes[:, axis])
    return length.clamp_(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
