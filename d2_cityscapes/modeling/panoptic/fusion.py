"""Panoptic fusion: semantic predictions and scored instance masks become one map of segments.

Shape letters: N instances, C = 19 classes, H W pixels. Rules of the reference implementation of
Porzi et al., "Seamless Scene Segmentation", CVPR 2019:

1. instances with a score strictly above the threshold, best first, whatever their class;
2. one is dropped if more than `overlap_threshold` of its mask is taken already (a half is not more
   than 0.5), and otherwise gets the free part of its mask;
3. free pixels whose semantic class is stuff form one segment a class, if there are
   `stuff_area_limit` of them or more;
4. all others are void, those with the semantic class of a thing included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.layers.best_classes import best_classes

__all__ = ["fuse_panoptic", "pixels_around"]

SegmentInfo = dict[str, Any]


def fuse_panoptic(
    sem_seg: Tensor,
    instances: Any,
    *,
    overlap_threshold: float = 0.5,
    score_threshold: float = 0.5,
    stuff_area_limit: int = 4096,
    table: LabelTable = CITYSCAPES,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Fuse the semantic and the instance prediction of one image.

    Args:
        sem_seg: (C, H, W) logits, or (H, W) integer train ids, 255 for void.
        instances: Detectron2 `Instances`, or anything alike, of size (H, W): `scores` (N,),
            `pred_classes` (N,) thing ids and `pred_masks` (N, H, W) bool. If it has `pred_boxes`,
            every mask must lie within its box, give or take a pixel, as Detectron2's pasted masks
            do: nothing is looked at outside.
        overlap_threshold: largest part of a mask that may be taken by better instances.
        score_threshold: instances must be strictly above.
        stuff_area_limit: smallest stuff segment, in pixels.
        table: the classes.

    Returns:
        panoptic: (H, W) int32 segment ids from 1, 0 for void, on the device of `sem_seg`.
        segments_info: one dict a segment, in the order of ids: "id", "isthing", "category_id"
            (train id, for things and stuff alike), "area" in pixels; things also have "score" and
            "instance_id" (their index in `instances`).

    `evaluation.instance_ids.ids_of_panoptic` turns the two into a map of instance ids. Detectron2's
    `Visualizer.draw_panoptic_seg` draws them with its own metadata of Cityscapes panoptics, e.g. of
    "cityscapes_fine_panoptic_val". On a GPU nothing waits for single instances.
    """
    labels = best_classes(sem_seg) if sem_seg.dim() == 3 else sem_seg.to(torch.uint8)
    # One code a pixel: a stuff or thing class, then void, then the painted instances by rank.
    void = len(table.classes)
    codes = labels.clamp(max=void).int()
    order = _paint_things(instances, codes, void, overlap_threshold, score_threshold)
    areas = torch.bincount(codes.flatten(), minlength=void + len(order) + 1).tolist()
    things = _thing_segments(instances, order, areas[void + 1 :], table)
    stuff = _stuff_segments(areas[:void], len(things), stuff_area_limit, table)

    lookup = torch.zeros(len(areas), dtype=torch.int32)
    for segment in stuff:
        lookup[segment["category_id"]] = segment["id"]
    rank_of = {index: rank for rank, index in enumerate(order, start=1)}
    for segment in things:
        lookup[void + rank_of[segment["instance_id"]]] = segment["id"]
    return _look_up(lookup, codes), things + stuff


def _look_up(lookup: Tensor, codes: Tensor) -> Tensor:
    """``lookup[codes]`` for a (L,) table and a map of int32 or int64."""
    return lookup.to(codes.device).index_select(0, codes.flatten()).view(codes.shape)


def _paint_things(
    instances: Any, codes: Tensor, void: int, overlap_threshold: float, score_threshold: float
) -> list[int]:
    """Paint instances, best first, looking at the box of each only.

    Args:
        instances: as for `fuse_panoptic`.
        codes: (H, W) int32, up to `void`; where the k-th best instance (from 1) is painted it
            becomes ``void + k``.
        void: the largest code of a free pixel.
        overlap_threshold, score_threshold: as for `fuse_panoptic`.

    Returns:
        The index of the k-th best instance at k - 1; some may have been dropped.
    """
    scores = instances.scores
    best_first = torch.argsort(scores, descending=True, stable=True)
    best_first = best_first[scores[best_first] > score_threshold]
    order = best_first.tolist()
    if not order:
        return order
    masks = instances.pred_masks
    if masks.shape[1:] != codes.shape:
        raise ValueError(f"masks are {(*masks.shape[1:],)}, the image is {(*codes.shape,)} (H, W)")
    exact = torch.float32 if codes.device.type == "mps" else torch.float64  # MPS has no other
    for rank, (index, (x0, y0, x1, y1)) in enumerate(
        zip(order, _crops(instances, best_first), strict=True), start=1
    ):
        mask = masks[index, y0:y1, x0:x1].to(codes.device, torch.bool)
        canvas = codes[y0:y1, x0:x1]
        free = mask & (canvas <= void)
        area = mask.sum()
        taken = (area - free.sum()).to(exact) / area
        keep = taken <= overlap_threshold  # 0 / 0 is NaN: not kept
        canvas.masked_fill_(free & keep, void + rank)
    return order


def _crops(instances: Any, order: Tensor) -> list[list[int]]:
    """[x0, y0, x1, y1] half-open pixels around the mask of each instance in `order`."""
    height, width = instances.pred_masks.shape[1:]
    if hasattr(instances, "pred_boxes"):
        boxes = instances.pred_boxes
        return pixels_around(getattr(boxes, "tensor", boxes)[order], (height, width))
    masks = instances.pred_masks[order].bool()
    (x0, x1), (y0, y1) = _span(masks.any(dim=1)), _span(masks.any(dim=2))
    return torch.stack([x0, y0, x1, y1], dim=1).tolist()


def pixels_around(boxes: Tensor, size: tuple[int, int]) -> list[list[int]]:
    """[x0, y0, x1, y1] half-open pixels that pasted masks may reach: the boxes and one around.

    Args:
        boxes: (N, 4) XYXY_ABS pixels.
        size: (H, W) of the image, which the result is inside of.
    """
    height, width = size
    low, high = boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1
    limit = torch.tensor([width, height], device=low.device)
    low, high = (torch.minimum(side.clamp(min=0), limit) for side in (low, high))
    return torch.cat([low, high], dim=1).long().tolist()


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last True of each row of (N, L); (0, 0) where there is none."""
    some = occupied.any(dim=1)
    first = occupied.int().argmax(dim=1)
    last = occupied.shape[1] - occupied.flip(1).int().argmax(dim=1)
    return first * some, last * some


def _thing_segments(
    instances: Any, order: list[int], areas: list[int], table: LabelTable
) -> list[SegmentInfo]:
    """The instances that kept any pixel, numbered from 1."""
    segments: list[SegmentInfo] = []
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    for index, area in zip(order, areas, strict=True):
        thing_id = classes[index]
        if not 0 <= thing_id < len(table.things):
            raise ValueError(
                f"pred_classes has {thing_id}; {table.name} has 0..{len(table.things) - 1}"
            )
        if area:
            segments.append(
                {
                    "id": len(segments) + 1,
                    "isthing": True,
                    "category_id": table.things[thing_id].train_id,
                    "score": scores[index],
                    "instance_id": index,
                    "area": area,
                }
            )
    return segments


def _stuff_segments(
    areas: list[int], num_things: int, area_limit: int, table: LabelTable
) -> list[SegmentInfo]:
    """The stuff classes with enough free pixels, numbered after the things."""
    kept = [c.train_id for c in table.stuff if areas[c.train_id] >= max(area_limit, 1)]
    return [
        {"id": segment_id, "isthing": False, "category_id": train_id, "area": areas[train_id]}
        for segment_id, train_id in enumerate(kept, start=num_things + 1)
    ]
