"""Scale jitter with crops of one size.

Shape letters: H, W pixels of the picture as it is stored; h, w pixels of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.data import transforms as T

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import VOID_TRAIN_ID, LabelTable

__all__ = ["PadTo", "ScaleJitter", "size_after"]

_TRIES = 10  # crops at most, as in Detectron2's RandomCrop_CategoryAreaConstraint
_SAMPLES = 128  # rows and columns of a crop in which its classes are counted
_PAD_VALUE = 128  # grey, as in Detectron2's FixedSizeCrop
_VOID_ID = 0  # in every table


class ScaleJitter(T.Augmentation):
    """Resizes by a random factor, and cuts a random crop out of what comes of it.

    It is the augmentation of all recent Cityscapes recipes with (0.5, 2.0), and the large-scale
    jitter of Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
    Segmentation", CVPR 2021, with (0.1, 2.0). The crop is cut first, of whole pixels of the stored
    picture, and then resized: nothing beside it is ever computed. Rounded to those pixels, the
    factors of its two axes differ by less than half a pixel of the crop's border.

    A picture that is smaller than the crop is taken whole; `PadTo` fills it up.
    """

    def __init__(
        self,
        resize: T.Augmentation,
        scale_range: Sequence[float],
        crop_size: Sequence[int],
        single_category_max_area: float = 1.0,
    ) -> None:
        """
        Args:
            resize: gives the ``T.ResizeTransform`` whose size the factor multiplies.
            scale_range: the smallest and the largest factor; it is drawn evenly between them.
            crop_size: (h, w).
            single_category_max_area: a crop in which one class has more than this part of the
                pixels that are not void is drawn anew, ten times at most; 1.0 for any crop. The
                part is that of a grid of some 128 x 128 pixels.

        Raises:
            D2CityscapesError: a value that cannot be used.
        """
        super().__init__()
        key = "INPUT.SCALE_JITTER"
        low, high = scale_range if len(scale_range) == 2 else (0, 0)
        if not 0 < low <= high:
            raise D2CityscapesError(
                f"{key}.RANGE {list(scale_range)}: use two factors above 0, the smaller one first"
            )
        if len(crop_size) != 2 or not all(isinstance(n, int) and n > 0 for n in crop_size):
            raise D2CityscapesError(f"{key}.CROP_SIZE {list(crop_size)}: use [height, width] in px")
        if not 0 < single_category_max_area <= 1:
            raise D2CityscapesError(
                f"{key}.SINGLE_CATEGORY_MAX_AREA {single_category_max_area}: use a part of the "
                "crop above 0, up to 1.0 for any crop"
            )
        scale_range, crop_size = tuple(scale_range), tuple(crop_size)
        self._init(locals())

    def get_transform(self, image: np.ndarray, ids: np.ndarray, table: LabelTable) -> T.Transform:
        """A crop and a resize.

        Args:
            image: (H, W, 3).
            ids: (H, W) instance ids.
            table: their classes.
        """
        height, width = image.shape[:2]
        scaled = self.scaled_size(image)
        size = tuple(min(pair) for pair in zip(self.crop_size, scaled, strict=True))
        # whole pixels of the picture that become the crop; never none, and never beyond it
        rows = min(max(round(size[0] * height / scaled[0]), 1), height)
        columns = min(max(round(size[1] * width / scaled[1]), 1), width)
        for _ in range(_TRIES):
            top = np.random.randint(height - rows + 1)
            left = np.random.randint(width - columns + 1)
            if self.single_category_max_area >= 1:
                break
            if self._is_mixed(ids[top : top + rows, left : left + columns], table):
                break
        return T.TransformList(
            [
                T.CropTransform(left, top, columns, rows, width, height),
                T.ResizeTransform(rows, columns, *size),
            ]
        )

    def scaled_size(self, image: np.ndarray) -> tuple[int, int]:
        """(height, width) px of an (H, W, 3) picture before the crop; drawn anew each time."""
        height, width = size_after(self.resize, image)
        factor = np.random.uniform(*self.scale_range)
        return max(round(height * factor), 1), max(round(width * factor), 1)

    def _is_mixed(self, ids: np.ndarray, table: LabelTable) -> bool:
        """Whether no class has more than its part; a crop of one class, or of void, is none."""
        steps = (max(side // _SAMPLES, 1) for side in ids.shape)
        rows, columns = (slice(step // 2, None, step) for step in steps)
        classes = table.train_id_of[ids[rows, columns]]
        counts = np.bincount(classes.ravel(), minlength=VOID_TRAIN_ID + 1)[:VOID_TRAIN_ID]
        return (counts > 0).sum() > 1 and counts.max() < counts.sum() * (
            self.single_category_max_area
        )


def size_after(resize: T.Augmentation, image: np.ndarray) -> tuple[int, int]:
    """(height, width) px that a resize gives an (H, W, 3) picture; drawn anew each time."""
    transform = resize.get_transform(image)
    if isinstance(transform, T.NoOpTransform):
        return image.shape[0], image.shape[1]
    return transform.new_h, transform.new_w


class PadTo(T.Augmentation):
    """Pads at the right and at the bottom with grey and void, to one size at least."""

    def __init__(self, size: Sequence[int]) -> None:
        """
        Args:
            size: (height, width) px.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """
        Args:
            image: (H, W, 3).
        """
        height, width = image.shape[:2]
        below, right = max(self.size[0] - height, 0), max(self.size[1] - width, 0)
        if not below and not right:
            return T.NoOpTransform()
        return T.PadTransform(0, 0, right, below, width, height, _PAD_VALUE, _VOID_ID)
