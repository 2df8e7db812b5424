"""Instance masks that stay in the id map they came in.

Shape letters: N masks of one image of H, W pixels; M maps (one, but after `IdMapMasks.cat`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes

from d2_cityscapes.layers.mask_targets import mask_coverage

__all__ = ["IdMapMasks"]


class IdMapMasks(BitMasks):
    """`BitMasks` without the (N, H, W) bitmaps: mask n is where the id map equals the n-th id.

    It can stand wherever Detectron2 takes `BitMasks`. Selecting masks copies ids, never pixels, and
    training targets are cut out of the map, so memory does not grow with N. Code that asks for
    `tensor` gets all bitmaps, made at that moment.

    Attributes:
        id_maps: (M, H, W) integers.
        map_index: (N,) int64, the map of each mask.
        ids: (N,) integers, the id of each mask in its map.
        image_size: (H, W).
    """

    def __init__(
        self, id_maps: torch.Tensor, ids: torch.Tensor, map_index: torch.Tensor | None = None
    ) -> None:
        """
        Args:
            id_maps: (H, W) or (M, H, W) integers.
            ids: (N,) integers.
            map_index: (N,) int64; None where there is one map.

        Raises:
            ValueError: other shapes.
        """
        if id_maps.dim() == 2:
            id_maps = id_maps[None]
        if map_index is None and len(id_maps) == 1:
            map_index = torch.zeros(len(ids), dtype=torch.int64, device=id_maps.device)
        if id_maps.dim() != 3 or map_index is None or ids.shape != map_index.shape:
            raise ValueError(
                f"id_maps {tuple(id_maps.shape)} with ids {tuple(ids.shape)}: expected (H, W) and "
                "(N,), or (M, H, W) with a map_index"
            )
        self.id_maps = id_maps
        self.ids = ids
        self.map_index = map_index
        self.image_size = id_maps.shape[1:]

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool: the bitmaps, a copy."""
        return self.id_maps[self.map_index] == self.ids[:, None, None]

    @property
    def device(self) -> torch.device:
        return self.id_maps.device

    def to(self, *args: Any, **kwargs: Any) -> IdMapMasks:
        parts = (self.id_maps, self.ids, self.map_index)
        return IdMapMasks(*(part.to(*args, **kwargs) for part in parts))

    def __getitem__(self, item: int | slice | torch.Tensor) -> IdMapMasks:
        """Some of the masks: an index, a slice, an (N,) bool or a (K,) int64 tensor."""
        if isinstance(item, int):
            item = torch.tensor([item])
        return IdMapMasks(self.id_maps, self.ids[item], self.map_index[item])

    def __iter__(self) -> Iterator[torch.Tensor]:
        """(H, W) bool bitmaps, one at a time."""
        for index, segment in zip(self.map_index.tolist(), self.ids.tolist(), strict=True):
            yield self.id_maps[index] == segment

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)})"

    def area(self) -> torch.Tensor:
        """(N,) int64 pixels."""
        areas = [mask.sum() for mask in self]
        return torch.stack(areas) if areas else torch.zeros_like(self.map_index)

    def nonempty(self) -> torch.Tensor:
        """(N,) bool."""
        return self.area() > 0

    def get_bounding_boxes(self) -> Boxes:
        """(N, 4) half-open XYXY_ABS boxes around the masks; zeros for an empty one."""
        boxes = [BitMasks(mask[None]).get_bounding_boxes() for mask in self]
        return Boxes.cat(boxes)

    def crop_and_resize(self, boxes: torch.Tensor, mask_size: int) -> torch.Tensor:
        """(N, S, S) bool targets of side S = `mask_size` inside of one (4,) box for each mask.

        The same targets as those of `BitMasks`, by `mask_coverage`.
        """
        if len(boxes) != len(self):
            raise ValueError(f"{len(boxes)} boxes for {len(self)} masks")
        return mask_coverage(self.id_maps, self.map_index, self.ids, boxes, mask_size) >= 0.5

    @staticmethod
    def cat(masks: Sequence[IdMapMasks]) -> IdMapMasks:
        """The masks of several of these, in order; maps that they share are kept once."""
        maps = {id(part.id_maps): part.id_maps for part in masks}
        first = dict(zip(maps, _starts([len(m) for m in maps.values()]), strict=True))
        index = [part.map_index + first[id(part.id_maps)] for part in masks]
        every_map = torch.cat(list(maps.values())) if len(maps) > 1 else masks[0].id_maps
        return IdMapMasks(every_map, torch.cat([part.ids for part in masks]), torch.cat(index))


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]
