"""Mask targets straight from a map of ids, without a picture of each mask.

Shape letters: M maps of (H, W) pixels, O objects in them, R regions (boxes), S the side of a
target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["mask_coverage"]

_SLICE = 1 << 23  # pixels of masks at a time on an accelerator: 32 MB
_CHUNK = 1 << 22  # numbers of one matrix on the CPU: 16 MB
_DOUBT = 1e-3  # products of matrices are nearer than that to RoIAlign's own sum


@torch.no_grad()
def mask_coverage(
    id_maps: Tensor,
    map_index: Tensor | None,
    ids: Tensor,
    boxes: Tensor,
    size: int,
    *,
    objects: Tensor | None = None,
) -> Tensor:
    """How much of each cell of each box is covered by the pixels of one object.

    It is RoIAlign (He et al., Mask R-CNN, section 3; "aligned", with adaptive sampling, as in
    Detectron2's ``BitMasks.crop_and_resize``) of the binary mask ``id_maps[m] == id``. Whether a
    cell is covered by half, which is what a target asks, is answered as torchvision's RoIAlign does
    on that device, to the last bit. There is never a mask for each region: `_by_slices` has a few
    masks of objects at a time, `_by_windows` one window of one mask.

    Args:
        id_maps: (M, H, W) integers.
        map_index: (O,) int64, the map of each object; None where there is one map.
        ids: (O,) integers, the id of each object in its map.
        boxes: (R, 4) XYXY_ABS pixels, half-open; parts outside of the map are not covered.
        size: S, cells along a side.
        objects: (R,) int64, the object of each region; None where region r is of object r.

    Returns:
        (R, S, S) float32 in 0..1. On the CPU the number itself may be off by some 1e-5.
    """
    boxes = boxes.to(device=id_maps.device, dtype=torch.float32)
    if len(boxes) == 0:
        return boxes.new_zeros(0, size, size)
    if objects is not None and len(objects) < len(ids):  # of some objects there is no region
        ids, map_index = ids[objects], None if map_index is None else map_index[objects]
        objects = None
    if objects is None:
        objects = torch.arange(len(boxes), device=boxes.device)
    cover = _by_windows if boxes.device.type == "cpu" else _by_slices
    # half precision would move the edges
    with torch.autocast(boxes.device.type, enabled=False):
        return cover(id_maps, map_index, ids, boxes, size, objects)


def _by_slices(
    id_maps: Tensor, map_index: Tensor | None, ids: Tensor, boxes: Tensor, size: int,
    objects: Tensor,
) -> Tensor:  # fmt: skip
    """For an accelerator: no shape depends on the numbers, so the host never waits.

    Some objects at a time get their whole masks, in which RoIAlign looks at the regions of these
    objects; all others are given an empty box, for which it takes no samples and answers 0. That is
    3 kernels a slice, and 10 bytes of traffic for a pixel of an object, at int16 ids: 0.4 GB an
    image of 1024 x 2048 with 20 objects, where a mask for each of 128 regions is 1.3 GB at least.
    Windows of the masks would be less traffic still, but their sizes are on the device: to ask for
    them costs a wait, and to bound them by the whole map makes them as large as this.
    """
    _, height, width = id_maps.shape
    step = max(_SLICE // (height * width), 1)
    regions = torch.cat([(objects % step).to(boxes.dtype)[:, None], boxes], dim=1)
    parts = torch.arange(-(-len(ids) // step), device=boxes.device)
    own = (objects // step == parts[:, None])[..., None]  # (parts, R, 1)
    coverage = boxes.new_zeros(len(boxes), size, size)
    masks = boxes.new_empty(min(step, len(ids)), height, width)
    for part, of_part in enumerate(torch.where(own, regions, 0.0)):
        here = slice(part * step, (part + 1) * step)
        maps = id_maps if map_index is None or len(id_maps) == 1 else id_maps[map_index[here]]
        own_ids = ids[here, None, None]
        torch.eq(maps, own_ids, out=masks[: len(own_ids)])
        coverage += roi_align(masks[:, None], of_part, size, aligned=True)[:, 0]
    return coverage


def _by_windows(
    id_maps: Tensor, map_index: Tensor | None, ids: Tensor, boxes: Tensor, size: int,
    objects: Tensor,
) -> Tensor:  # fmt: skip
    """For the CPU, where numbers are at hand: one object at a time, within its regions only.

    RoIAlign averages bilinear samples on a grid, so it is a product of one weight matrix along y,
    the mask, and one weight matrix along x, which is faster than torchvision's sampling but rounds
    otherwise. Regions with a cell so near to one half that this could decide are left to
    torchvision.
    """
    _, height, width = id_maps.shape
    y = _Axis(boxes[:, 1], boxes[:, 3], size, height)
    x = _Axis(boxes[:, 0], boxes[:, 2], size, width)
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    samples = (y.samples * x.samples).clamp(min=1)[:, None, None]
    maps = torch.zeros_like(objects) if map_index is None else map_index[objects]
    pairs, pair_of = torch.stack([maps, ids[objects].long()], dim=1).unique(
        dim=0, return_inverse=True
    )
    mask = boxes.new_zeros(1, 1, height, width)  # right where RoIAlign looks, old elsewhere
    coverage = boxes.new_empty(len(boxes), size, size)
    for pair, (map_number, segment) in enumerate(pairs.tolist()):
        members = (pair_of == pair).nonzero()[:, 0]
        rows, columns = y.window(members), x.window(members)
        window = mask[0, 0, rows, columns]
        window.copy_(id_maps[map_number, rows, columns] == segment)
        for some in members.split(max(_CHUNK // (size * max(window.shape)), 1)):
            along_y = y.weights(some, rows).flatten(0, 1) @ window
            found = along_y.view(len(some), size, -1) @ x.weights(some, columns).transpose(1, 2)
            found /= samples[some]
            close = (found - 0.5).abs() < _DOUBT + samples[some] * 2.0**-23  # many terms round more
            unsure = close.flatten(1).any(dim=1)
            found[unsure] = roi_align(mask, regions[some[unsure]], size, aligned=True)[:, 0]
            coverage[some] = found
    return coverage


class _Axis:
    """RoIAlign's samples of R regions along one axis of a map."""

    def __init__(self, begin: Tensor, end: Tensor, size: int, limit: int) -> None:
        begin, end = begin - 0.5, end - 0.5  # pixel centres at integers
        self.begin, self.size, self.limit = begin, size, limit
        self.cell = (end - begin) / size  # (R,) pixels
        self.samples = self.cell.ceil().clamp(min=0).long()  # (R,) in each cell
        self.first = begin.floor().clamp(0, limit - 1).long()  # (R,) first pixel that counts
        self.last = (end.floor() + 1).clamp(0, limit - 1).long()  # (R,) last one

    def window(self, chosen: Tensor) -> slice:
        """All pixels that count for some region of the chosen."""
        first, last = int(self.first[chosen].min()), int(self.last[chosen].max())
        return slice(first, max(last, first) + 1)

    def weights(self, chosen: Tensor, window: slice) -> Tensor:
        """(C, S, pixels of the window) weights for each of the C chosen regions.

        They are summed over the samples of a cell, not averaged.
        """
        cell, samples = self.cell[chosen, None, None], self.samples[chosen, None, None]
        steps = torch.arange(int(samples.max()), device=cell.device)
        cells = torch.arange(self.size, device=cell.device)[:, None]
        positions = (  # (C, S, samples), rounded as torchvision does
            self.begin[chosen, None, None]
            + cells * cell
            + (steps + 0.5) * cell / samples.clamp(min=1)
        )
        valid = (steps < samples) & (positions >= -1) & (positions <= self.limit)
        positions = positions.clamp(0, self.limit - 1)
        low = positions.floor()
        high_share = positions - low
        pixels = window.stop - window.start
        low = (low.long() - window.start).clamp(0, pixels - 1)
        high = (low + 1).clamp(max=pixels - 1)
        table = torch.zeros(len(chosen), self.size, pixels, device=cell.device)
        table.scatter_add_(2, low, (1 - high_share) * valid)
        return table.scatter_add_(2, high, high_share * valid)
