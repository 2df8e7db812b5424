"""Mask targets straight from a map of ids, without a picture of each mask.

Shape letters: M maps of (H, W) pixels, O objects in them, R regions (boxes), S the side of a
target.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torchvision  # noqa: F401  (brings the operation that `_roi_align` asks for)
from torch import Tensor

__all__ = ["mask_coverage"]

_SLICE = 1 << 23  # pixels of masks at a time on an accelerator: 32 MB
_CHUNK = 1 << 20  # pixels of windows at a time on the CPU: some 10 MB of temporary memory


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
    masks of objects at a time, `_by_windows` some windows of masks.

    Args:
        id_maps: (M, H, W) integers.
        map_index: (O,) int64, the map of each object; None where there is one map.
        ids: (O,) integers, the id of each object in its map.
        boxes: (R, 4) XYXY_ABS pixels, half-open; parts outside of the map are not covered.
        size: S, cells along a side.
        objects: (R,) int64, the object of each region; None where region r is of object r.

    Returns:
        (R, S, S) float32 in 0..1. On the CPU the number itself may be off in its last digits.
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
    3 kernels a slice, and for each object 6 bytes of traffic a pixel, at int16 ids: 0.25 GB an
    image of 1024 x 2048 with 20 objects, where masks of 128 regions are 1.3 GB. Windows of the
    masks would be less still, but how large they are is known to the device alone: to ask costs a
    wait, and windows of any size that a box may have are no smaller than the map. RoIAlign itself
    is what makes the targets exact: its sum depends on positions in the whole map, and on how the
    device multiplies and adds.
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
        coverage += _roi_align(masks[:, None], of_part, size)[:, 0]
    return coverage


def _by_windows(
    id_maps: Tensor, map_index: Tensor | None, ids: Tensor, boxes: Tensor, size: int,
    objects: Tensor,
) -> Tensor:  # fmt: skip
    """For the CPU, where numbers are at hand: the mask is only looked at inside of the box.

    RoIAlign averages bilinear samples on a grid, so it is a product of one weight matrix along y,
    the mask, and one weight matrix along x. That is faster than torchvision's sampling, but rounds
    otherwise: regions with a cell so near to one half that it could matter are left to torchvision.
    """
    _, height, width = id_maps.shape
    y = _Axis(boxes[:, 1], boxes[:, 3], size, height)
    x = _Axis(boxes[:, 0], boxes[:, 2], size, width)
    ids = ids[objects]
    maps = torch.zeros_like(objects) if map_index is None else map_index[objects]
    coverage = boxes.new_empty(len(boxes), size, size)
    flat = id_maps.reshape(-1)
    for chosen, (rows, columns), most in _groups(y, x):
        top, y_weights = y.weights(chosen, rows, most[0])
        left, x_weights = x.weights(chosen, columns, most[1])
        lines = maps[chosen, None] * height + top[:, None] + torch.arange(rows)
        begins = (lines * width + left[:, None]).flatten()
        windows = flat.unfold(0, columns, 1).index_select(0, begins).view(-1, rows, columns)
        windows.eq_(ids[chosen, None, None])  # in place: many times faster than to bool
        coverage[chosen] = y_weights @ windows.float() @ x_weights.transpose(1, 2)
    samples = (y.samples * x.samples).clamp(min=1)[:, None, None]
    coverage /= samples
    # what sums of so many terms, and positions of that size, may be off at most
    doubt = samples * 2.0**-23 + boxes.abs().amax(dim=1)[:, None, None] * 2.0**-22
    unsure = ((coverage - 0.5).abs() <= doubt).flatten(1).any(dim=1).nonzero()[:, 0]
    # numpy's zeros take memory only where something is written
    mask = torch.from_numpy(np.zeros((1, 1, height, width), np.float32))
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    corners = torch.stack([y.first, y.last + 1, x.first, x.last + 1], dim=1)
    for region in unsure.tolist():
        y0, y1, x0, x1 = corners[region].tolist()
        window = id_maps[maps[region], y0:y1, x0:x1] == ids[region]
        mask[0, 0, y0:y1, x0:x1] = window  # what is beside it, nobody looks at
        coverage[region] = _roi_align(mask, regions[region, None], size)[0, 0]
    return coverage


def _roi_align(masks: Tensor, regions: Tensor, size: int) -> Tensor:
    """(R, 1, S, S) of (N, 1, H, W) masks at (R, 5) regions: number of the mask, and box.

    The kernel itself, whose forward pass is always the same. torchvision's function takes another
    way where PyTorch is told to be deterministic, over all pixels of the map for each cell.
    """
    return torch.ops.torchvision.roi_align(masks, regions, 1.0, size, size, 0, True)


class _Axis:
    """RoIAlign's samples of R regions along one axis of a map."""

    def __init__(self, begin: Tensor, end: Tensor, size: int, limit: int) -> None:
        begin, end = begin - 0.5, end - 0.5  # pixel centres at integers
        self.begin, self.size, self.limit = begin, size, limit
        self.cell = (end - begin) / size  # (R,) pixels
        self.samples = self.cell.ceil().clamp(min=0).long()  # (R,) in each cell
        self.first = begin.floor().clamp(0, limit - 1).long()  # (R,) first pixel that counts
        last = (end.floor() + 1).clamp(0, limit - 1).long()
        self.last = torch.maximum(last, self.first)  # (R,) last one

    @property
    def extent(self) -> Tensor:
        """(R,) pixels that count."""
        return self.last - self.first + 1

    def weights(self, chosen: Tensor, extent: int, most_samples: int) -> tuple[Tensor, Tensor]:
        """(C,) first pixel of a window of each chosen region, (C, S, extent) weights in it.

        Weights are summed over the samples of a cell, not averaged. `extent`, the length of the
        windows, and `most_samples` are at least those of each of the C chosen regions.
        """
        cell, samples = self.cell[chosen, None, None], self.samples[chosen, None, None]
        first = self.first[chosen].clamp(max=self.limit - extent)  # windows end within the map
        steps = torch.arange(most_samples)
        cells = torch.arange(self.size)[:, None]
        positions = (  # (C, S, samples), rounded as torchvision does
            self.begin[chosen, None, None]
            + cells * cell
            + (steps + 0.5) * cell / samples.clamp(min=1)
        )
        valid = (steps < samples) & (positions >= -1) & (positions <= self.limit)
        positions = positions.clamp(0, self.limit - 1)
        low = positions.floor()
        high_share = positions - low
        low = (low.long() - first[:, None, None]).clamp(0, extent - 1)
        high = (low + 1).clamp(max=extent - 1)
        table = torch.zeros(len(cell), self.size, extent)
        table.scatter_add_(2, low, (1 - high_share) * valid)
        return first, table.scatter_add_(2, high, high_share * valid)


def _groups(y: _Axis, x: _Axis) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Regions of like size together, which keeps the padding small and the operations few.

    Yields:
        (C,) indices of the regions, the largest extents, and the largest numbers of samples, of
        (y, x) each.
    """
    extents = torch.stack([y.extent, x.extent], dim=1)
    samples = torch.stack([y.samples, x.samples], dim=1)
    octaves = torch.log2(extents.float()).ceil().clamp(min=5)
    for octave in octaves.unique(dim=0):
        members = (octaves == octave).all(dim=1).nonzero()[:, 0]
        extent, most_samples = extents[members].amax(dim=0), samples[members].amax(dim=0)
        for chunk in members.split(max(_CHUNK // int(extent.prod()), 1)):
            yield chunk, extent.tolist(), most_samples.tolist()
