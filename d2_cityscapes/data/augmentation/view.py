"""How a second record is seen from an image that gets something of it.

Shape letters: H, W pixels of the record as it is stored; h, w pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from d2_cityscapes.data.augmentation.patches import Patch

__all__ = ["View"]


class View(NamedTuple):
    """How the second record is seen from the image.

    Attributes:
        shape: (H, W).
        scaled: (height, width) px of it after the resize.
        offset: (top, left) px of the resized record at which the image begins.
        size: (h, w).
        flipped: whether what it sees is mirrored then.
    """

    shape: tuple[int, ...]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, ...]
    flipped: bool

    @staticmethod
    def drawn(
        shape: tuple[int, ...], scaled: tuple[int, int], size: tuple[int, ...], flip: bool
    ) -> View:
        """Anywhere, where the record is larger than the image; else at its top left."""
        top, left = (
            int(np.random.randint(max(own - wanted, 0) + 1))
            for own, wanted in zip(scaled, size, strict=True)
        )
        return View(shape, scaled, (top, left), size, flip and np.random.rand() < 0.5)

    @property
    def scale(self) -> tuple[float, float]:
        """Factors of height and width."""
        return self.scaled[0] / self.shape[0], self.scaled[1] / self.shape[1]

    def sees(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool: which of (N, 4) boxes of the record reach into the image."""
        (top, left), (height, width) = self.offset, self.size
        x0, y0, x1, y1 = boxes.T * np.array([*self.scale[::-1], *self.scale[::-1]])[:, None]
        return (x1 > left) & (x0 < left + width) & (y1 > top) & (y0 < top + height)

    def windows(self, box: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What of a box is seen: rows and columns of the record, and of the image.

        Whole pixels of both; the latter may reach over the edge of the image.
        """
        source, target = [], []
        for axis, (begin, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
            scale, offset = self.scale[axis], self.offset[axis]
            first = max(int(begin), int(offset / scale))
            last = min(int(end), -int(-(offset + self.size[axis]) // scale))
            source.append(slice(first, last))
            target.append(slice(round(first * scale) - offset, round(last * scale) - offset))
        return (source[0], source[1]), (target[0], target[1])

    def inside(self, box: Sequence[int], patch: Patch) -> tuple[slice, slice]:
        """Rows and columns of a patch in which all of a box of the record lies."""
        target = self.windows(box)[1]
        if self.flipped:
            width = self.size[1]
            target = target[0], slice(width - target[1].stop, width - target[1].start)
        rows, columns = (  # the patch was rounded as a whole
            slice(max(part.start - begin - 1, 0), max(part.stop - begin + 1, 0))
            for part, begin in zip(target, (patch.top, patch.left), strict=True)
        )
        return rows, columns
