"""From a map of instance ids to the tables and masks that training and evaluation need.

Shape letters: H, W pixels; N segments of one image. Boxes are half-open XYXY_ABS in pixels: a
one-pixel object is 1 wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable

__all__ = ["InstanceTable", "find_instances", "instance_masks"]


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


def find_instances(instance_ids: np.ndarray, table: LabelTable) -> InstanceTable:
    """List the instances and group regions of thing classes in a map.

    Stuff, void, and instances of classes that are not evaluated (caravan, trailer) are left out.

    Args:
        instance_ids: (H, W) integers in the encoding of `d2_cityscapes.labels`.
        table: classes of the dataset.
    """
    height, width = instance_ids.shape
    flat = instance_ids.reshape(-1)
    begins = np.empty(flat.size, dtype=bool)  # a run is a stretch of one id within one row
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[::width] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=flat.size)
    values, segments = np.unique(flat[starts], return_inverse=True)
    rows, left = np.divmod(starts, width)

    boxes = np.empty((len(values), 4), dtype=np.int32)
    boxes[:, :2], boxes[:, 2:] = (width, height), 0
    np.minimum.at(boxes[:, 0], segments, left)
    np.minimum.at(boxes[:, 1], segments, rows)
    np.maximum.at(boxes[:, 2], segments, left + lengths)
    np.maximum.at(boxes[:, 3], segments, rows + 1)
    areas = np.bincount(segments, weights=lengths).astype(np.int64)  # exact below 2**53

    values = values.astype(np.int64)
    classes = table.train_id_of[values]
    keep = table.thing_id_of_train[classes] >= 0
    every = InstanceTable(values.astype(np.int32), classes, boxes, areas, values < INSTANCE_DIVISOR)
    return every.select(keep)


def instance_masks(instance_ids: np.ndarray, table: InstanceTable) -> np.ndarray:
    """(N, H, W) bool masks of the segments that `find_instances` listed in an (H, W) map."""
    masks = np.zeros((len(table), *instance_ids.shape), dtype=bool)
    for mask, segment, (x0, y0, x1, y1) in zip(masks, table.ids, table.boxes, strict=True):
        mask[y0:y1, x0:x1] = instance_ids[y0:y1, x0:x1] == segment
    return masks
