"""The proposals of a whole batch: one suppression and one answer, instead of five waits an image.

Shape letters: N images, A anchors of one level, T candidates of all levels of an image.
"""

from __future__ import annotations

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

__all__ = ["suppress", "top_proposals"]

# Boxes of one suppression, which compares each with each: where torchvision's own, of several
# categories, stops to take all of them together on a GPU. It needs 78 MB then.
_MOST_BOXES = 25_000


@torch.no_grad()
def top_proposals(
    anchors: list[Boxes],
    logits: list[Tensor],
    deltas: list[Tensor],
    image_sizes: list[tuple[int, int]],
    *,
    transform: Box2BoxTransform,
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
) -> list[Instances]:
    """What Detectron2's `find_top_rpn_proposals` gives in training.

    Only the best anchors of each level are decoded, instead of all.

    Args:
        anchors: (A, 4) of each level.
        logits: (N, A) of each level.
        deltas: (N, A, 4) of each level.
        image_sizes: (height, width) px of each image.
        transform: turns anchors into proposals.
        nms_thresh: IoU above which the weaker of two boxes of one level goes.
        pre_nms_topk: candidates of a level.
        post_nms_topk: proposals of an image.
        min_box_size: px; a box with a side no longer than that is left out.

    Returns:
        For each image "proposal_boxes" and "objectness_logits", the best first.

    Raises:
        FloatingPointError: predictions that are not finite.
    """
    boxes, scores, levels = _best(anchors, logits, deltas, transform, pre_nms_topk)
    finite = torch.isfinite(boxes).all() & torch.isfinite(scores).all()
    boxes = torch.stack([_clip(b, size) for b, size in zip(boxes, image_sizes, strict=True)])
    valid = ((boxes[..., 2:] - boxes[..., :2]) > min_box_size).all(dim=-1)
    chosen, counts = suppress(boxes, scores, levels, valid, nms_thresh, image_sizes)
    *found, all_finite = torch.cat([counts, finite[None].to(counts.dtype)]).tolist()
    if not all_finite:
        raise FloatingPointError(
            "Predicted boxes or scores contain Inf/NaN. Training has diverged."
        )
    proposals = []
    for image, keep in enumerate(_runs(chosen, found, scores.shape[1])):
        proposals.append(
            Instances(
                image_sizes[image],
                proposal_boxes=Boxes(boxes[image, keep[:post_nms_topk]]),
                objectness_logits=scores[image, keep[:post_nms_topk]],
            )
        )
    return proposals


def suppress(
    boxes: Tensor,
    scores: Tensor,
    levels: Tensor,
    valid: Tensor,
    threshold: float,
    image_sizes: list[tuple[int, int]],
) -> tuple[list[Tensor], Tensor]:
    """Non-maximum suppression within each level of each image, for many images at once.

    Images lie one below the other, and levels side by side, where no box meets those of another
    place. That rounds coordinates to about 0.001 px, as torchvision's `batched_nms` does on a GPU.

    Args:
        boxes: (N, T, 4) float32, inside of their images.
        scores: (N, T).
        levels: (T,) int64.
        valid: (N, T) bool; the others are not there.
        threshold: IoU above which the weaker of two boxes goes.
        image_sizes: (height, width) px of each image.

    Returns:
        (K,) int64 indices into the N * T boxes, of some images together: image by image, the best
        first, and behind them what is not valid. And (N,) int64, how many valid ones of each image.
    """
    height, width = (max(side) + 1 for side in zip(*image_sizes, strict=True))
    flat_scores = scores.float().flatten()
    candidates = scores.shape[1]
    together = _together(candidates)
    apart = torch.where(valid[..., None], boxes, 0)  # an empty box suppresses nothing
    apart[..., 0::2] += (levels * width)[:, None]
    chosen, counts = [], []
    for first in range(0, len(boxes), together):
        part = apart[first : first + together]
        rows = torch.arange(len(part), device=boxes.device)
        part[..., 1::2] += (rows * height)[:, None, None]
        start = first * candidates
        end = start + len(part) * candidates
        keep = nms(part.flatten(0, 1), flat_scores[start:end], threshold)
        image = torch.where(valid.flatten()[start:end][keep], keep // candidates, len(part))
        chosen.append(start + keep[image.argsort(stable=True)])
        counts.append((image[:, None] == rows).sum(dim=0))
    return chosen, torch.cat(counts)


def _together(candidates: int) -> int:
    """How many images of so many boxes go into one suppression."""
    return max(1, _MOST_BOXES // candidates)


def _best(
    anchors: list[Boxes],
    logits: list[Tensor],
    deltas: list[Tensor],
    transform: Box2BoxTransform,
    most: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, T, 4) decoded boxes, (N, T) logits and (T,) levels of the best anchors of each level."""
    boxes, scores, levels = [], [], []
    images = torch.arange(len(logits[0]), device=logits[0].device)[:, None]
    for level, (places, score, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        ranked, order = score.sort(descending=True, dim=1)
        order = order[:, :most]
        decoded = transform.apply_deltas(
            delta[images, order].flatten(0, 1), places.tensor[order].flatten(0, 1)
        )
        boxes.append(decoded.view(*order.shape, 4))
        scores.append(ranked[:, :most])
        levels.append(torch.full(order.shape[1:], level, device=score.device))
    return torch.cat(boxes, dim=1), torch.cat(scores, dim=1), torch.cat(levels)


def _clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    height, width = image_size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _runs(chosen: list[Tensor], counts: list[int], candidates: int) -> list[Tensor]:
    """For each image the indices of its proposals, the best first."""
    together = _together(candidates)
    runs = []
    for part, indices in enumerate(chosen):
        own = counts[part * together : (part + 1) * together]
        runs += [run % candidates for run in indices[: sum(own)].split(own)]
    return runs
