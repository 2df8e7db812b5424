"""Masks of which only the part around the object is held, one bit a pixel.

A hundred masks of a picture of 8k (4320 x 7680) are 3.3 GB as bitmaps. Objects are small: as crops
they are some MB, and 0.4 GB where each of them fills the picture.

Shape letters: N masks of one image of H, W pixels; h, w pixels of a crop.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Crop", "CroppedMasks"]


class Crop(NamedTuple):
    """A part of a mask; outside of it the mask is False.

    Attributes:
        top, left: where it lies, in pixels.
        pixels: (h, w) bool.
    """

    top: int
    left: int
    pixels: np.ndarray

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of the image."""
        h, w = self.pixels.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)

    def window(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """(bottom - top, right - left) bool: the mask in a half-open window of the image."""
        result = np.zeros((max(bottom - top, 0), max(right - left, 0)), dtype=bool)
        rows, columns = self.place
        y0, y1 = max(rows.start, top), min(rows.stop, bottom)
        x0, x1 = max(columns.start, left), min(columns.stop, right)
        if y0 < y1 and x0 < x1:
            own = self.pixels[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]
            result[y0 - top : y1 - top, x0 - left : x1 - left] = own
        return result


class _Packed(NamedTuple):
    top: int
    left: int
    shape: tuple[int, int]
    bits: np.ndarray


class CroppedMasks:
    """(N, H, W) bool masks in little memory, for Detectron2's `Instances`.

    What reads them one by one, or in windows, finds tensors: ``masks[n]``, ``masks[n, y0:y1,
    x0:x1]``. ``masks.tensor`` makes all bitmaps. They stay in main memory: ``to`` changes nothing.

    Attributes:
        image_size: (H, W).
    """

    def __init__(self, image_size: tuple[int, int], crops: Iterable[Crop] = ()) -> None:
        """
        Args:
            image_size: (H, W).
            crops: each inside of the image; they are packed as they come.
        """
        self.image_size = image_size
        self._packed = [
            _Packed(c.top, c.left, (c.pixels.shape[0], c.pixels.shape[1]), np.packbits(c.pixels))
            for c in crops
        ]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return len(self), *self.image_size

    @property
    def tensor(self) -> torch.Tensor:
        """(N, H, W) bool: all bitmaps, made now."""
        result = torch.zeros(self.shape, dtype=torch.bool)
        for own, crop in zip(result.numpy(), self.crops(), strict=True):
            own[crop.place] = crop.pixels
        return result

    def crop(self, index: int) -> Crop:
        """The part of a mask that is held."""
        top, left, shape, bits = self._packed[index]
        pixels = np.unpackbits(bits, count=shape[0] * shape[1]).view(bool)
        return Crop(top, left, pixels.reshape(shape))

    def crops(self) -> Iterator[Crop]:
        """Of each mask, one at a time."""
        return map(self.crop, range(len(self)))

    def to(self, *args: Any, **kwargs: Any) -> CroppedMasks:
        """Itself: there is nothing to move."""
        return self

    def __len__(self) -> int:
        return len(self._packed)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """(H, W) bool bitmaps, one at a time."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, item: Any) -> Any:
        """A bitmap (an index), a window of one (an index and two slices), or some of the masks."""
        if isinstance(item, tuple):
            index, rows, columns = item
            y0, y1, _ = rows.indices(self.image_size[0])
            x0, x1, _ = columns.indices(self.image_size[1])
            return torch.from_numpy(self.crop(index).window(y0, x0, y1, x1))
        if isinstance(item, int):
            return self[item, :, :]
        chosen = CroppedMasks(self.image_size)
        if isinstance(item, slice):
            chosen._packed = self._packed[item]
        else:
            rows = np.arange(len(self))[torch.as_tensor(item).cpu().numpy()]
            chosen._packed = [self._packed[row] for row in rows.tolist()]
        return chosen

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_instances={len(self)}, image_size={self.image_size})"
