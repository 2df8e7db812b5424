"""Pieces of one image laid over another, with their ids.

Shape letters: h, w pixels of the image; a, b pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from d2_cityscapes.data.augmentation.image_and_ids import PlanarTransform

__all__ = ["PasteTransform", "Patch"]

_PIXEL = np.dtype("V3")


class Patch(NamedTuple):
    """A piece of another record.

    Attributes:
        top, left: where it begins in the image that it is pasted on, px.
        pixels: (3, a, b) uint8.
        ids: (a, b) uint16 instance ids, or plain label ids, that it has there; 0 where nothing of
            it is pasted.
    """

    top: int
    left: int
    pixels: torch.Tensor
    ids: np.ndarray

    @property
    def region(self) -> tuple[slice, slice]:
        """Rows and columns of the image under it."""
        height, width = self.ids.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    def mirrored(self, width: int) -> Patch:
        """The same in the mirrored image, which is that wide."""
        left = width - self.left - self.ids.shape[1]
        return Patch(self.top, left, self.pixels.flip(2), self.ids[:, ::-1])


class PasteTransform(PlanarTransform):
    """Patches, one after another, onto image and ids."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        """
        Args:
            patches: inside of the image; a later one covers those before it.
        """
        super().__init__()
        self.patches = patches

    def apply_planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PlanarTransform`."""
        for patch in self.patches:
            rows, columns = patch.region
            _overlay(pixels[:, rows, columns], patch.pixels, patch.ids != 0)
        return pixels

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) ids to the same, in new memory."""
        return self.apply_ids(segmentation.copy())

    def apply_ids(self, ids: np.ndarray) -> np.ndarray:
        """See `PlanarTransform`."""
        for patch in self.patches:
            np.copyto(ids[patch.region], patch.ids, where=patch.ids != 0)
        return ids


def _overlay(below: torch.Tensor, above: torch.Tensor, mask: np.ndarray) -> None:
    """Write (3, a, b) uint8 over others where an (a, b) bool mask says so."""
    arrays = [x.permute(1, 2, 0).numpy() for x in (below, above)]
    if all(x.strides[1:] == (3, 1) for x in arrays):  # a pixel as one number: ten times faster
        to, source = (x.view(_PIXEL)[..., 0] for x in arrays)
        np.copyto(to, source, where=mask)
        return
    for channel in range(3):
        np.copyto(arrays[0][..., channel], arrays[1][..., channel], where=mask)
