"""What mask transformers learn of an image: a map of segments, instead of a bitmap for each.

Shape letters: h, w pixels of an image; S segments of it; P points; K masks, of any segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.labels import LabelTable
from d2_cityscapes.structures import IdMapMasks

__all__ = ["NO_SEGMENT", "Segments", "coverage", "find_segments", "padded_maps"]

NO_SEGMENT = -1


class Segments(NamedTuple):
    """The segments of an image.

    Attributes:
        map: (h, w) int64, the segment that each pixel belongs to, `NO_SEGMENT` where void.
        classes: (S,) int64 train ids.
    """

    map: Tensor
    classes: Tensor


def find_segments(inputs: Mapping[str, Any], table: LabelTable, device: torch.device) -> Segments:
    """The segments of one training input: its instances, and one of each class of stuff.

    Group regions of thing classes are void, as in Mask2Former. Without "instances" each class is
    one segment, things with their group regions too.

    Args:
        inputs: "sem_seg" (h, w) int64 train ids, and "instances" with thing ids and masks, or
            without.
        table: the classes.
        device: where the segments are wanted.
    """
    sem_seg = inputs["sem_seg"].to(device)
    instances = inputs.get("instances")
    regions = table.classes if instances is None else table.stuff
    wanted = torch.zeros(256, dtype=torch.bool)
    wanted[[c.train_id for c in regions]] = True
    found = torch.unique(sem_seg)
    found = found[wanted.to(device)[found]]
    lookup = torch.full((256,), NO_SEGMENT, dtype=torch.int64, device=device)
    lookup[found] = torch.arange(len(found), device=device)
    segments = lookup[sem_seg]
    if instances is None:
        return Segments(segments, found)
    things = torch.tensor([c.train_id for c in table.things], device=device)
    classes = things[instances.gt_classes.to(device)]
    _add_masks(segments, instances.gt_masks.to(device), len(found))
    return Segments(segments, torch.cat([found, classes]))


def _add_masks(segments: Tensor, masks: Any, first: int) -> None:
    """Write masks into a map, the n-th as segment ``first + n``."""
    if not len(masks):
        return
    if isinstance(masks, IdMapMasks) and len(masks.id_maps) == 1:
        ids, order = masks.ids.sort()
        place = torch.searchsorted(ids, masks.id_maps[0]).clamp_(max=len(ids) - 1)
        segments.copy_(torch.where(ids[place] == masks.id_maps[0], first + order[place], segments))
        return
    for number, mask in enumerate(masks, start=first):
        segments[mask.bool()] = number


def padded_maps(segments: Sequence[Segments], size: tuple[int, int]) -> list[Segments]:
    """The same, with void around their maps from the top left up to a size (height, width)."""
    height, width = size
    return [
        Segments(
            F.pad(own, (0, width - own.shape[1], 0, height - own.shape[0]), value=NO_SEGMENT),
            classes,
        )
        for own, classes in segments
    ]


def coverage(segment_map: Tensor, wanted: Tensor, points: Tensor) -> Tensor:
    """(K, P) float32: what `grid_sample` gives of the bitmaps of segments, which are never made.

    Bilinear between the centres of pixels, 0 outside of the map: the sum of the weights of those
    of a point's four neighbours that belong to the segment.

    Args:
        segment_map: (h, w) as of `Segments`.
        wanted: (K,) segments.
        points: (K, P, 2) float32 (x, y) in the unit square; (1, P, 2) for the same ones for all.
    """
    height, width = segment_map.shape
    place = points * points.new_tensor([width, height]) - 0.5
    corner = place.floor()
    part = place - corner
    result = points.new_zeros(len(wanted), points.shape[1])
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = (corner[..., 0] + dx).long(), (corner[..., 1] + dy).long()
            weight = (part[..., 0] if dx else 1 - part[..., 0]) * (
                part[..., 1] if dy else 1 - part[..., 1]
            )
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            found = segment_map[y.clamp(0, height - 1), x.clamp(0, width - 1)]
            result += weight * (inside & (found == wanted[:, None]))
    return result
