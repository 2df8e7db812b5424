"""From a map of instance ids to the tables and masks that training and evaluation need.

Shape letters: H, W pixels; N segments of one image. Boxes are half-open XYXY_ABS in pixels: a
one-pixel object is 1 wide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from d2_cityscapes.labels import INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelTable

__all__ = [
    "COLUMNS",
    "MEDIUM_AREA",
    "SMALL_AREA",
    "InstanceTable",
    "find_instances",
    "find_segments",
    "group_small",
    "panoptic_segments",
]

# COCO's limits of size: the largest area that is still small, and still medium, px^2
SMALL_AREA, MEDIUM_AREA = 32**2, 96**2


@dataclass(frozen=True)
class InstanceTable:
    """The thing segments of one image, in ascending order of id.

    Attributes:
        ids: (N,) int32, ids as they stand in the map.
        classes: (N,) uint8, train ids.
        boxes: (N, 4) int32, half-open XYXY_ABS pixels.
        areas: (N,) int64, pixels.
        crowd: (N,) bool, group regions: thing pixels without an instance number.
    """

    ids: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: np.ndarray) -> InstanceTable:
        """The table with only some rows: (K,) indices or an (N,) bool mask."""
        return InstanceTable(
            self.ids[rows], self.classes[rows], self.boxes[rows], self.areas[rows], self.crowd[rows]
        )

    @staticmethod
    def cat(tables: Iterable[InstanceTable]) -> InstanceTable:
        """One table of all rows, in order; without any where there are no tables."""
        none = InstanceTable(
            ids=np.zeros(0, np.int32),
            classes=np.zeros(0, np.uint8),
            boxes=np.zeros((0, 4), np.int32),
            areas=np.zeros(0, np.int64),
            crowd=np.zeros(0, bool),
        )
        every = (none, *tables)
        return InstanceTable(
            **{c: np.concatenate([getattr(table, c) for table in every]) for c in COLUMNS}
        )


COLUMNS = tuple(field.name for field in fields(InstanceTable))


def find_instances(instance_ids: np.ndarray, table: LabelTable) -> InstanceTable:
    """List the instances and group regions of thing classes in a map.

    Stuff, void, and instances of classes that are not evaluated (caravan, trailer) are left out.

    Args:
        instance_ids: (H, W) integers in the encoding of `d2_cityscapes.labels`.
        table: classes of the dataset.
    """
    return _find(instance_ids, table, table.is_thing_id)


def find_segments(instance_ids: np.ndarray, table: LabelTable) -> InstanceTable:
    """Likewise, with the stuff classes, each of them one segment whose `crowd` is true."""
    return _find(instance_ids, table, table.train_id_of != VOID_TRAIN_ID)


def group_small(instance_ids: np.ndarray, found: InstanceTable, min_area: int) -> np.ndarray:
    """The map with the instances of fewer pixels than this made group regions of their class.

    So they are no instances any more, while their pixels keep their class. The map itself, where
    there are none.

    Args:
        instance_ids: (H, W) integers.
        found: its table.
        min_area: pixels.
    """
    small = found.select(~found.crowd & (found.areas < min_area))
    if len(small):
        instance_ids = instance_ids.copy()
    for own, (x0, y0, x1, y1) in zip(small.ids.tolist(), small.boxes.tolist(), strict=True):
        window = instance_ids[y0:y1, x0:x1]
        window[window == own] = own // INSTANCE_DIVISOR
    return instance_ids


def panoptic_segments(
    instance_ids: np.ndarray, table: LabelTable
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The map in Detectron2's panoptic format.

    Returns:
        (H, W) int32 segment ids from 1 on, 0 where void, and for each segment a dict of "id",
        "category_id" (train id), "isthing", "iscrowd" (group regions) and "area" (pixels). A stuff
        class is one segment.
    """
    found = find_segments(instance_ids, table)
    isthing = table.thing_id_of_train[found.classes] >= 0
    lookup = np.zeros(len(table.train_id_of), dtype=np.int32)
    lookup[found.ids] = np.arange(1, len(found) + 1)
    columns = (found.classes, isthing, isthing & found.crowd, found.areas)
    segments_info = [
        {
            "id": i + 1,
            "category_id": category,
            "isthing": thing,
            "iscrowd": int(crowd),
            "area": area,
        }
        for i, (category, thing, crowd, area) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)
        )
    ]
    return lookup[instance_ids], segments_info


def _find(instance_ids: np.ndarray, table: LabelTable, wanted: np.ndarray) -> InstanceTable:
    """The segments whose ids are `wanted`, an (M,) bool lookup.

    Works on runs, stretches of one id within a row, of which a map of two million pixels has some
    ten thousand.
    """
    width = instance_ids.shape[1]
    flat = instance_ids.reshape(-1)
    begins = np.empty(flat.size, dtype=bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=flat.size)
    kept = wanted[flat[starts]]
    starts, lengths = starts[kept], lengths[kept]

    values, segments = np.unique(flat[starts], return_inverse=True)
    order = np.argsort(
        segments, kind="stable"
    )  # the runs of a segment together, from top to bottom
    firsts = np.searchsorted(segments[order], np.arange(len(values)))
    rows, left = np.divmod(starts[order], width)
    lengths = lengths[order]
    boxes = np.empty((len(values), 4), dtype=np.int32)
    areas = np.empty(len(values), dtype=np.int64)
    if len(values):  # reduceat takes no empty list
        boxes[:, 0] = np.minimum.reduceat(left, firsts)
        boxes[:, 1] = rows[firsts]
        boxes[:, 2] = np.maximum.reduceat(left + lengths, firsts)
        boxes[:, 3] = rows[np.append(firsts[1:], len(rows)) - 1] + 1
        areas[:] = np.add.reduceat(lengths, firsts)
    ids = values.astype(np.int32)
    return InstanceTable(ids, table.train_id_of[ids], boxes, areas, ids < INSTANCE_DIVISOR)
