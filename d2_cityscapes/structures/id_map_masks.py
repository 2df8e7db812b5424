"""Instance masks that stay in the id map they came in.

Shape letters: N masks of one image of H, W pixels; O objects that they are the masks of; M maps
(one, but after `IdMapMasks.cat`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
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

    Selected by a tensor of indices, which may ask for a mask many times as the sampling of RoIs
    does, the masks remember their objects: so a GPU can do something once for each object, whose
    number the host knows, and not for each mask.

    Attributes:
        id_maps: (M, H, W) integers.
        image_size: (H, W).
    """

    def __init__(
        self,
        id_maps: torch.Tensor,
        ids: torch.Tensor,
        map_index: torch.Tensor | None = None,
        objects: torch.Tensor | None = None,
    ) -> None:
        """
        Args:
            id_maps: (H, W) or (M, H, W) integers.
            ids: (O,) integers, the id of each object in its map.
            map_index: (O,) int64, the map of each object; None where there is one map.
            objects: (N,) int64, which object each mask is of; None for one of each, in order.

        Raises:
            ValueError: other shapes.
        """
        if id_maps.dim() == 2:
            id_maps = id_maps[None]
        known = len(id_maps) == 1 if map_index is None else map_index.shape == ids.shape
        if id_maps.dim() != 3 or ids.dim() != 1 or not known:
            raise ValueError(
                f"id_maps {tuple(id_maps.shape)} with ids {tuple(ids.shape)}: expected (H, W) and "
                "(N,), or (M, H, W) with a map_index"
            )
        self.id_maps = id_maps
        self.image_size = id_maps.shape[1:]
        self._object_ids = ids
        self._object_maps = map_index
        self._objects = objects

    @property
    def ids(self) -> torch.Tensor:
        """(N,) integers, the id of each mask in its map."""
        return self._object_ids if self._objects is None else self._object_ids[self._objects]

    @property
    def map_index(self) -> torch.Tensor:
        """(N,) int64, the map of each mask."""
        if self._object_maps is None:
            return torch.zeros(len(self), dtype=torch.int64, device=self.device)
        return self._object_maps if self._objects is None else self._object_maps[self._objects]

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool: the bitmaps, a copy."""
        maps = self.id_maps if self._object_maps is None else self.id_maps[self.map_index]
        return maps == self.ids[:, None, None]

    @property
    def device(self) -> torch.device:
        return self.id_maps.device

    def to(self, *args: Any, **kwargs: Any) -> IdMapMasks:
        maps, objects = (
            part if part is None else part.to(*args, **kwargs)
            for part in (self._object_maps, self._objects)
        )
        ids = self._object_ids.to(*args, **kwargs)
        return IdMapMasks(self.id_maps.to(*args, **kwargs), ids, maps, objects)

    def __getitem__(self, item: int | slice | list[int] | torch.Tensor) -> IdMapMasks:
        """Some of the masks: an index, a slice, an (N,) bool or a (K,) int64 tensor."""
        if isinstance(item, int):
            item = slice(item, item + 1 or None)
        ids, maps = self._object_ids, self._object_maps
        by_index = isinstance(item, torch.Tensor) and item.dtype != torch.bool
        if by_index or self._objects is not None:
            return IdMapMasks(self.id_maps, ids, maps, self._rows()[item])
        return IdMapMasks(self.id_maps, ids[item], maps if maps is None else maps[item])

    def _rows(self) -> torch.Tensor:
        """(N,) int64, the object of each mask."""
        if self._objects is None:
            return torch.arange(len(self._object_ids), device=self._object_ids.device)
        return self._objects

    def __iter__(self) -> Iterator[torch.Tensor]:
        """(H, W) bool bitmaps, one at a time."""
        for index, segment in zip(self.map_index.tolist(), self.ids.tolist(), strict=True):
            yield self.id_maps[index] == segment

    def __len__(self) -> int:
        return len(self._object_ids if self._objects is None else self._objects)

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
        coverage = mask_coverage(
            self.id_maps, self._object_maps, self._object_ids, boxes, mask_size,
            objects=self._objects,
        )  # fmt: skip
        return coverage >= 0.5

    @staticmethod
    def cat(masks: Sequence[IdMapMasks]) -> IdMapMasks:
        """The masks of several of these, in order; maps and objects that they share stay one."""
        maps = {id(part.id_maps): part.id_maps for part in masks}
        lists = {part._list(): part for part in masks}
        first_map = dict(zip(maps, _starts(maps.values()), strict=True))
        first = dict(zip(lists, _starts([p._object_ids for p in lists.values()]), strict=True))
        ids = torch.cat([part._object_ids for part in lists.values()])
        rows = torch.cat([part._rows() + first[part._list()] for part in masks])
        if len(masks[0].id_maps) == len(maps) == 1:
            return IdMapMasks(masks[0].id_maps, ids, None, rows)
        index = [
            IdMapMasks(p.id_maps, p._object_ids, p._object_maps).map_index
            + first_map[id(p.id_maps)]
            for p in lists.values()
        ]
        return IdMapMasks(torch.cat(list(maps.values())), ids, torch.cat(index), rows)

    def _list(self) -> tuple[int, ...]:
        """Equal for masks that are selected from the same objects."""
        return id(self.id_maps), id(self._object_ids), id(self._object_maps)


def _starts(parts: Iterable[torch.Tensor]) -> list[int]:
    """Where each part begins when they are put together."""
    return list(itertools.accumulate([len(part) for part in parts], initial=0))[:-1]
