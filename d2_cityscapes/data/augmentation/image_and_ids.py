"""An image and its id map under Detectron2's augmentations.

Detectron2's transforms work on (H, W, 3) arrays and resize with Pillow. Records are (3, H, W), and
the transforms of every recipe are several times faster on that layout, so they are done here; any
other transform is given the array that it expects.

Shape letters: H, W pixels before a transform, h, w after it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image

from d2_cityscapes.data.augmentation.resizing import (
    check_resize_backend,
    resize_ids,
    resize_image,
)
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.instances import InstanceTable

__all__ = ["ImageAndIds", "PlanarTransform", "StoredRecord"]


class StoredRecord(NamedTuple):
    """A record of a shard.

    Attributes:
        pixels: (3, H, W) uint8.
        ids: (H, W) uint16 instance ids.
        instances: their table of things and groups.
    """

    pixels: torch.Tensor
    ids: np.ndarray
    instances: InstanceTable


class PlanarTransform(T.Transform):
    """A transform of pixels that works on (3, h, w) images, and leaves positions alone."""

    def apply_ids(self, ids: np.ndarray) -> np.ndarray:
        """(h, w) ids to the same; it may write into what it is given."""
        return ids

    def apply_planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """(3, h, w) uint8 to the same; it may write into what it is given."""
        raise NotImplementedError

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 to the same."""
        planes = torch.from_numpy(np.array(img)).permute(2, 0, 1)
        return self.apply_planes(planes).permute(1, 2, 0).numpy()

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class ImageAndIds:
    """What Detectron2's augmentations take in place of its ``AugInput``.

    Attributes:
        pixels: (3, h, w) uint8 tensor.
        ids: (h, w) uint16 instance ids, or None.
        table: the classes.
        instances: things and groups of the record as it was stored: no other ids are in `ids`.
        second: reads another record, RGB, for augmentations that mix two; None where there is none.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        ids: np.ndarray | None,
        table: LabelTable,
        *,
        resize_backend: str = "torch",
        planar: bool = False,
        instances: InstanceTable | None = None,
        second: Callable[[], StoredRecord] | None = None,
    ) -> None:
        """
        Args:
            pixels: (3, H, W) uint8, which may be written over; the channel order does not matter.
            ids: (H, W) uint16 instance ids, likewise, or None where there are no targets to build.
            table: the classes.
            resize_backend: one of `RESIZE_BACKENDS`, see `resize_image`.
            planar: keep images plane by plane in memory, for transforms that work so.
            instances: see above.
            second: see above.
        """
        self.pixels = pixels
        self.ids = ids
        self.table = table
        self.instances = instances
        self.second = second
        self._planar = planar
        self._resize_backend = check_resize_backend(resize_backend)

    @property
    def image(self) -> np.ndarray:
        """(h, w, 3) uint8, a view of `pixels`."""
        return self.pixels.permute(1, 2, 0).numpy()

    @property
    def sem_seg(self) -> np.ndarray:
        """(h, w) uint8 train ids, for augmentations that look at classes."""
        if self.ids is None:
            raise AttributeError("sem_seg: this input has no annotations")
        return self.table.train_id_of[self.ids]

    def transform(self, transform: T.Transform) -> None:
        """Apply a transform to image and ids, in place."""
        if isinstance(transform, T.TransformList):
            for part in transform.transforms:
                self.transform(part)
            return
        self.pixels = self._image_after(transform)
        if self.ids is not None:
            self.ids = _ids_after(transform, self.ids)

    def _image_after(self, transform: T.Transform) -> torch.Tensor:
        if isinstance(transform, T.HFlipTransform):
            return self.pixels.flip(2)
        if isinstance(transform, PlanarTransform):
            return transform.apply_planes(self.pixels)
        if type(transform) is T.CropTransform:  # a view: what follows reads the crop alone
            rows = slice(transform.y0, transform.y0 + transform.h)
            return self.pixels[:, rows, transform.x0 : transform.x0 + transform.w]
        if isinstance(transform, T.PadTransform):
            sides = (transform.x0, transform.x1, transform.y0, transform.y1)
            return torch.nn.functional.pad(self.pixels, sides, value=transform.pad_value)
        bilinear = getattr(transform, "interp", None) == Image.Resampling.BILINEAR
        if isinstance(transform, T.ResizeTransform) and bilinear:
            size = (transform.new_h, transform.new_w)
            backend, planar = self._resize_backend, self._planar
            return resize_image(self.pixels, size, backend=backend, planar=planar)
        before = self.image
        after = transform.apply_image(before)
        if after is before:
            return self.pixels
        return torch.from_numpy(np.ascontiguousarray(after.transpose(2, 0, 1)))


def _ids_after(transform: T.Transform, ids: np.ndarray) -> np.ndarray:
    if isinstance(transform, T.ResizeTransform):
        return resize_ids(ids, (transform.new_h, transform.new_w))
    if isinstance(transform, T.HFlipTransform):  # as numpy's flip, but several times faster
        return torch.from_numpy(ids.view(np.int16)).flip(1).numpy().view(np.uint16)
    if isinstance(transform, PlanarTransform):
        return transform.apply_ids(ids)
    return transform.apply_segmentation(ids)
