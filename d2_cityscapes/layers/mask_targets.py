"""Mask targets straight from a map of ids, without a picture of each mask.

Shape letters: M maps of (H, W) pixels, R regions (boxes), S the side of a target.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = ["mask_coverage"]

_CHUNK = 1 << 22  # pixels of crops at a time: some 40 MB of temporary memory


@torch.no_grad()
def mask_coverage(
    id_maps: torch.Tensor,
    map_index: torch.Tensor,
    ids: torch.Tensor,
    boxes: torch.Tensor,
    size: int,
) -> torch.Tensor:
    """How much of each cell of each box is covered by the pixels of one id.

    It is RoIAlign (He et al., Mask R-CNN, section 3; "aligned", with adaptive sampling, as in
    Detectron2's ``BitMasks.crop_and_resize``) of the binary mask ``id_maps[m] == id``. RoIAlign
    averages bilinear samples on a grid, so it is a product of one weight matrix along y, the
    mask inside of the box, and one weight matrix along x; the mask is compared out of the id map
    inside of the box only. Memory does not depend on how many masks there are.

    Args:
        id_maps: (M, H, W) integers.
        map_index: (R,) int64, which map each region looks at.
        ids: (R,) integers, the id whose pixels count.
        boxes: (R, 4) XYXY_ABS pixels, half-open; parts outside of the map are not covered.
        size: S, cells along a side.

    Returns:
        (R, S, S) float32 in 0..1.
    """
    _, height, width = id_maps.shape
    boxes = boxes.to(device=id_maps.device, dtype=torch.float32) - 0.5  # pixel centres at integers
    y = _Axis(boxes[:, 1], boxes[:, 3], size, height)
    x = _Axis(boxes[:, 0], boxes[:, 2], size, width)
    coverage = torch.zeros(len(boxes), size, size, device=id_maps.device)
    flat = id_maps.reshape(-1)
    # half precision would move the edges
    with torch.autocast(id_maps.device.type, enabled=False):
        for chosen, extents, samples in _groups(y, x):
            top, y_weights = y.weights(chosen, extents[0], samples[0])
            left, x_weights = x.weights(chosen, extents[1], samples[1])
            rows = torch.arange(extents[0], device=boxes.device) + top[:, None]
            begins = (map_index[chosen, None] * height + rows) * width + left[:, None]
            crops = flat.unfold(0, extents[1], 1)[begins] == ids[chosen, None, None]
            coverage[chosen] = y_weights @ crops.float() @ x_weights.transpose(1, 2)
    return coverage / (y.samples * x.samples).clamp(min=1)[:, None, None]


class _Axis:
    """RoIAlign's samples of R regions along one axis of a map."""

    def __init__(self, begin: torch.Tensor, end: torch.Tensor, size: int, limit: int) -> None:
        self.begin, self.size, self.limit = begin, size, limit
        self.cell = (end - begin) / size  # (R,) pixels
        self.samples = self.cell.ceil().clamp(min=0).long()  # (R,) in each cell
        self.first = begin.floor().clamp(0, limit - 1).long()  # (R,) first pixel that counts
        last = (end.floor() + 1).clamp(0, limit - 1).long()
        self.extent = (last - self.first + 1).clamp(min=1)  # (R,) pixels that count

    def weights(
        self, chosen: torch.Tensor, extent: int, most_samples: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(C,) first pixel of a window of each chosen region, (C, S, extent) weights in it.

        Weights are summed over the samples of a cell, not averaged. `extent`, the length of the
        windows, and `most_samples` are at least those of each of the C chosen regions.
        """
        cell, samples = self.cell[chosen], self.samples[chosen]
        first = self.first[chosen].clamp(max=self.limit - extent)  # windows end within the map
        steps = torch.arange(most_samples, device=cell.device)
        cells = torch.arange(self.size, device=cell.device)
        offsets = (steps + 0.5) * (cell / samples.clamp(min=1))[:, None]  # (C, samples)
        positions = (
            self.begin[chosen, None, None] + cells[:, None] * cell[:, None, None] + offsets[:, None]
        )
        valid = (steps < samples[:, None])[:, None] & (positions >= -1) & (positions <= self.limit)
        positions = positions.clamp(0, self.limit - 1)
        low = positions.floor()
        high_share = positions - low
        low = (low.long() - first[:, None, None]).clamp(0, extent - 1).flatten(2)
        high = (low + 1).clamp(max=extent - 1)
        table = torch.zeros(len(cell), self.size, extent, device=cell.device)
        table.scatter_add_(2, low, ((1 - high_share) * valid).flatten(2))
        table.scatter_add_(2, high, (high_share * valid).flatten(2))
        return first, table


def _groups(y: _Axis, x: _Axis) -> Iterator[tuple[torch.Tensor, list[int], list[int]]]:
    """Regions of like size together, which keeps the padding small and the operations few.

    Yields:
        (C,) indices of the regions, the largest extents, and the largest numbers of samples, of
        (y, x) each.
    """
    # all that shapes depend on, in one copy to the host
    extents, samples = torch.stack(
        [torch.stack([y.extent, x.extent], dim=1), torch.stack([y.samples, x.samples], dim=1)]
    ).cpu()
    octaves = torch.log2(extents.float()).ceil().clamp(min=4)
    for octave in torch.unique(octaves, dim=0):
        members = torch.nonzero((octaves == octave).all(dim=1))[:, 0]
        extent, most_samples = extents[members].amax(dim=0), samples[members].amax(dim=0)
        for chunk in members.split(max(_CHUNK // int(extent.prod()), 1)):
            yield chunk.to(y.extent.device), extent.tolist(), most_samples.tolist()
