"""Panoptic copy-paste, on maps of instance ids.

Shape letters: H, W pixels of the second record as it is stored; h, w pixels of the image that is
pasted on; a, b pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import transforms as T

from d2_cityscapes.data.augmentation.image_and_ids import PlanarTransform
from d2_cityscapes.data.augmentation.resizing import (
    check_resize_backend,
    resize_ids,
    resize_image,
)
from d2_cityscapes.data.augmentation.scale_jitter import ScaleJitter, size_after
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable
from d2_cityscapes.labels.instances import SMALL_AREA, InstanceTable, find_segments

__all__ = ["CopyPaste", "PasteTransform", "Patch"]

_MOST_PATCHES = 100


class Patch(NamedTuple):
    """A piece of another record.

    Attributes:
        top, left: where it begins in the image that it is pasted on, px.
        pixels: (3, a, b) uint8.
        mask: (a, b) bool, what of it is pasted.
        id: the instance id, or plain label id, that it has there.
    """

    top: int
    left: int
    pixels: torch.Tensor
    mask: np.ndarray
    id: int


class PasteTransform(PlanarTransform):
    """Patches, one after another, onto image and ids."""

    def __init__(self, patches: Sequence[Patch]) -> None:
        """
        Args:
            patches: inside of the image, in the order in which they cover each other.
        """
        super().__init__()
        self.patches = patches

    def apply_planes(self, pixels: torch.Tensor) -> torch.Tensor:
        """See `PlanarTransform`."""
        pixels = pixels.clone()
        for top, left, patch, mask, _ in self.patches:
            height, width = mask.shape
            here = pixels[:, top : top + height, left : left + width]
            here.copy_(torch.where(torch.from_numpy(mask), patch, here))
        return pixels

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(h, w) ids to the same."""
        ids = segmentation.copy()
        for top, left, _, mask, own in self.patches:
            height, width = mask.shape
            ids[top : top + height, left : left + width][mask] = own
        return ids


class CopyPaste(T.Augmentation):
    """Pastes instances, and stuff, of a second record where they stand in it.

    The second record is scaled, cropped and flipped for itself, as a training image would be; only
    what is pasted of it is ever computed. Things are pasted as in Ghiasi et al., "Simple Copy-Paste
    is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021: hard edges, and what
    they hide of other instances is gone from these. The nearer one, whose lower edge is lower,
    covers the farther one. Stuff is pasted behind all things, as it never hides one, but over stuff
    and void. Group regions and void are never pasted.

    Every pasted instance gets the first number of its class that is free, so that no two are one.
    Instances below 32 x 32 px have several chances to be pasted, as in Kisantal et al.,
    "Augmentation for Small Object Detection", 2019; the first copy stands where it was, each other
    one somewhere else at the same height, where a street has objects of that size.
    """

    def __init__(
        self,
        prob: float,
        things: float = 0.5,
        stuff: float = 0.25,
        small_copies: int = 1,
        *,
        resize: T.Augmentation,
        flip: bool = True,
        min_area: int = 0,
        resize_backend: str = "torch",
    ) -> None:
        """
        Args:
            prob: part of the images that get something pasted.
            things: part of the instances that is pasted, each at random.
            stuff: part of the stuff classes, likewise.
            small_copies: chances of an instance below 32 x 32 px.
            resize: a `ScaleJitter`, or gives the ``T.ResizeTransform`` of a training image.
            flip: whether the second record is mirrored with a chance of one half.
            min_area: instances of fewer pixels than this are not pasted.
            resize_backend: see `resize_image`.

        Raises:
            D2CityscapesError: a value that cannot be used.
        """
        super().__init__()
        for key, value in (("PROB", prob), ("THINGS", things), ("STUFF", stuff)):
            if not 0 <= value <= 1:
                raise D2CityscapesError(
                    f"INPUT.COPY_PASTE.{key} {value}: use a number from 0 to 1, a chance"
                )
        if small_copies < 1:
            raise D2CityscapesError(
                f"INPUT.COPY_PASTE.SMALL_COPIES {small_copies}: use a whole number of 1 or more"
            )
        check_resize_backend(resize_backend)
        self._init(locals())

    def get_transform(
        self,
        image: np.ndarray,
        ids: np.ndarray,
        table: LabelTable,
        second: Callable[[], tuple[torch.Tensor, np.ndarray]] | None,
    ) -> T.Transform:
        """A `PasteTransform`, or none.

        Args:
            image: (h, w, 3).
            ids: (h, w) instance ids.
            table: their classes.
            second: see `ImageAndIds`.
        """
        if second is None or np.random.rand() >= self.prob:
            return T.NoOpTransform()
        pixels, own_ids = second()
        scaled = self._scaled_size(pixels.permute(1, 2, 0).numpy())
        view = _View.drawn(own_ids.shape, scaled, ids.shape, self.flip and np.random.rand() < 0.5)
        found = find_segments(own_ids, table)
        patches = []
        numbers = _Numbers(ids)
        covered = table.is_thing_id[ids] | (ids >= INSTANCE_DIVISOR)  # stuff is behind these
        for row, moves in self._chosen(found, view, table):
            patch = self._patch(pixels, own_ids, found, row, view)
            if patch is None:
                continue
            if found.ids[row] < INSTANCE_DIVISOR:  # stuff
                height, width = patch.mask.shape
                behind = np.s_[patch.top : patch.top + height, patch.left : patch.left + width]
                patches.append(patch._replace(mask=patch.mask & ~covered[behind]))
                continue
            if np.count_nonzero(patch.mask) < max(self.min_area, 1):
                continue
            for move in range(moves):
                label = int(found.ids[row]) // INSTANCE_DIVISOR
                number = numbers.free(label)
                if number is None:
                    break
                room = ids.shape[1] - patch.mask.shape[1] + 1
                left = np.random.randint(room) if move else patch.left
                patches.append(patch._replace(left=left, id=number))
        patches.sort(key=lambda p: p.id >= INSTANCE_DIVISOR and p.top + p.mask.shape[0])
        return PasteTransform(patches) if patches else T.NoOpTransform()

    def _scaled_size(self, image: np.ndarray) -> tuple[int, int]:
        if isinstance(self.resize, ScaleJitter):
            return self.resize.scaled_size(image)
        return size_after(self.resize, image)

    def _chosen(
        self, found: InstanceTable, view: _View, table: LabelTable
    ) -> list[tuple[int, int]]:
        """Rows of the segments to paste, each with how often."""
        things = table.is_thing_id[found.ids]
        small = found.areas * view.scale[0] * view.scale[1] < SMALL_AREA
        chances = np.where(things & small, self.small_copies, 1)
        times = np.random.binomial(chances, np.where(things, self.things, self.stuff))
        times[things & found.crowd] = 0
        rows = np.flatnonzero((times > 0) & view.sees(found.boxes))
        if len(rows) > _MOST_PATCHES:
            rows = np.sort(np.random.choice(rows, _MOST_PATCHES, replace=False))
        return [(int(row), int(times[row])) for row in rows]

    def _patch(
        self,
        pixels: torch.Tensor,
        ids: np.ndarray,
        found: InstanceTable,
        row: int,
        view: _View,
    ) -> Patch | None:
        """A segment as it is seen, None where nothing of it is left."""
        source, target = view.windows(found.boxes[row])
        size = tuple(part.stop - part.start for part in target)
        if min(size) < 1:
            return None
        mask = resize_ids(ids[source], size) == found.ids[row]
        piece = pixels[:, source[0], source[1]]
        own = resize_image(piece, size, backend=self.resize_backend)
        # rounded to whole pixels of the record, a window may reach over the edge
        rows, columns = (
            slice(max(-part.start, 0), limit - part.start)
            for part, limit in zip(target, view.size, strict=True)
        )
        mask, own = mask[rows, columns], own[:, rows, columns]
        if not mask.any():
            return None
        top, left = (max(part.start, 0) for part in target)
        if view.flipped:
            mask, own = mask[:, ::-1].copy(), own.flip(2)
            left = view.size[1] - left - mask.shape[1]
        return Patch(top, left, own, mask, int(found.ids[row]))


class _View(NamedTuple):
    """How the second record is seen from the image.

    Attributes:
        shape: (H, W).
        scaled: (height, width) px of it after the resize.
        offset: (top, left) px of the resized record at which the image begins.
        size: (h, w).
        flipped: whether the image is mirrored then.
    """

    shape: tuple[int, int]
    scaled: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]
    flipped: bool

    @staticmethod
    def drawn(
        shape: tuple[int, int], scaled: tuple[int, int], size: tuple[int, int], flipped: bool
    ) -> _View:
        """Anywhere, where the record is larger than the image; else at its top left."""
        top, left = (
            int(np.random.randint(max(own - wanted, 0) + 1))
            for own, wanted in zip(scaled, size, strict=True)
        )
        return _View(shape, scaled, (top, left), size, flipped)

    @property
    def scale(self) -> tuple[float, float]:
        """Factors of height and width."""
        return self.scaled[0] / self.shape[0], self.scaled[1] / self.shape[1]

    def sees(self, boxes: np.ndarray) -> np.ndarray:
        """(N,) bool: which of (N, 4) boxes of the record reach into the image."""
        x0, y0, x1, y1 = boxes.T * np.repeat([self.scale[::-1]], 2, axis=0).ravel()[:, None]
        top, left = self.offset
        height, width = self.size
        return (x1 > left) & (x0 < left + width) & (y1 > top) & (y0 < top + height)

    def windows(self, box: np.ndarray) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What of a box is seen: rows and columns of the record, and of the image before the flip.

        Whole pixels of both; the latter may reach over the edge of the image.
        """
        source, target = [], []
        for axis, (begin, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
            scale, offset = self.scale[axis], self.offset[axis]
            begin = max(int(begin), int(offset / scale))
            end = min(int(end), -int(-(offset + self.size[axis]) // scale))
            source.append(slice(begin, end))
            target.append(slice(round(begin * scale) - offset, round(end * scale) - offset))
        return (source[0], source[1]), (target[0], target[1])


class _Numbers:
    """Instance ids that a map does not have."""

    def __init__(self, ids: np.ndarray) -> None:
        self._taken = np.bincount(ids.ravel()) > 0

    def free(self, label: int) -> int | None:
        """The first one of a class, which is then taken; None if there is none."""
        first = label * INSTANCE_DIVISOR
        own = np.zeros(INSTANCE_DIVISOR, dtype=bool)
        known = self._taken[first : first + INSTANCE_DIVISOR]
        own[: len(known)] = known
        if own.all():
            return None
        number = first + int(np.argmin(own))
        if number >= len(self._taken):
            self._taken = np.pad(self._taken, (0, number + 1 - len(self._taken)))
        self._taken[number] = True
        return number
