"""Panoptic copy-paste, on maps of instance ids.

Shape letters: H, W pixels of the second record as it is stored; h, w pixels of the image that is
pasted on; a, b pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from detectron2.data import transforms as T

from d2_cityscapes.data.augmentation.image_and_ids import StoredRecord
from d2_cityscapes.data.augmentation.patches import PasteTransform, Patch
from d2_cityscapes.data.augmentation.resizing import (
    check_resize_backend,
    resize_ids,
    resize_image,
)
from d2_cityscapes.data.augmentation.scale_jitter import ScaleJitter, size_after
from d2_cityscapes.data.augmentation.view import View
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable
from d2_cityscapes.labels.instances import SMALL_AREA, InstanceTable, find_segments

__all__ = ["CopyPaste"]

_TRIES = 10  # places for a copy that moves
_SAMPLES = 128  # rows in which stuff is looked for


class CopyPaste(T.Augmentation):
    """Pastes instances, and stuff, of a second record where they stand in it.

    The second record is scaled, cropped and flipped for itself, as a training image would be; of
    its pixels only those around what is pasted are computed. Things are pasted as in Ghiasi et al.,
    "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR 2021:
    with hard edges, and what they hide of other instances is gone from these. Stuff comes behind
    all things of the image, over its stuff and void. Group regions and void are never pasted.

    Every pasted instance gets the first number of its class that is free, so that no two are one.
    Instances below 32 x 32 px have several chances, after Kisantal et al., "Augmentation for Small
    Object Detection", 2019: the first copy stands where it was, each other one at the same height,
    where a street has objects of that size, in a place where it hides no thing.
    """

    def __init__(
        self,
        prob: float,
        things: float = 0.5,
        stuff: float = 0.1,
        small_copies: int = 1,
        *,
        resize: T.Augmentation,
        flip: bool = True,
        min_area: int = 0,
        image_format: str = "RGB",
        resize_backend: str = "torch",
        planar: bool = False,
    ) -> None:
        """
        Args:
            prob: part of the images that get something pasted.
            things: part of the instances that is pasted, each at random.
            stuff: part of the stuff classes, likewise.
            small_copies: chances of an instance below 32 x 32 px.
            resize: a `ScaleJitter`, or gives the ``T.ResizeTransform`` of a training image.
            flip: whether the second record is mirrored with a chance of one half.
            min_area: instances that would have fewer pixels than this are not pasted.
            image_format: of the image that is pasted on, "RGB" or "BGR".
            resize_backend: see `resize_image`.
            planar: likewise.

        Raises:
            D2CityscapesError: a value that cannot be used.
        """
        super().__init__()
        for key, value in (("PROB", prob), ("THINGS", things), ("STUFF", stuff)):
            if not 0 <= value <= 1:
                raise D2CityscapesError(
                    f"INPUT.COPY_PASTE.{key} {value}: use a chance, a number from 0 to 1"
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
        instances: InstanceTable,
        second: Callable[[], StoredRecord],
    ) -> T.Transform:
        """A `PasteTransform`, or none.

        Args:
            image: (h, w, 3).
            ids: (h, w) instance ids.
            table: their classes.
            instances: see `ImageAndIds`.
            second: likewise.
        """
        if np.random.rand() >= self.prob:
            return T.NoOpTransform()
        record = second()
        view = self._view(record, ids.shape)
        found = _seen(record, view, table)
        found, times = self._chosen(found, view, table)
        patch = self._patch(record, found, view) if len(found) else None
        if patch is None:
            return T.NoOpTransform()
        numbers = _Numbers(instances.ids)
        renewed = np.zeros(len(table.train_id_of), dtype=np.uint16)  # 0: not pasted
        for own in found.ids.tolist():
            renewed[own] = numbers.renew(own)
        patch = patch._replace(ids=renewed.take(patch.ids))
        if (found.ids < INSTANCE_DIVISOR).any():
            hidden = patch.ids < INSTANCE_DIVISOR
            hidden &= _is_thing(ids[patch.region], table, bool(instances.crowd.any()))
            patch.ids[hidden] = 0
        movable = self._movable(patch, renewed, found, times, view)
        return PasteTransform([patch, *_moved(patch, movable, ids, numbers, table)])

    def _view(self, record: StoredRecord, size: tuple[int, ...]) -> View:
        """How an image of a size sees the record: as a training image of its own would."""
        image = record.pixels.permute(1, 2, 0).numpy()
        if isinstance(self.resize, ScaleJitter):
            scaled = self.resize.scaled_size(image)
        else:
            scaled = size_after(self.resize, image)
        return View.drawn(record.ids.shape, scaled, size, self.flip)

    def _chosen(
        self, found: InstanceTable, view: View, table: LabelTable
    ) -> tuple[InstanceTable, np.ndarray]:
        """Segments to paste, and how often each is."""
        things = table.is_thing_id[found.ids]
        small = found.areas * view.scale[0] * view.scale[1] < SMALL_AREA
        chances = np.where(things & small, self.small_copies, 1)
        chances[things & found.crowd] = 0
        times = np.random.binomial(chances, np.where(things, self.things, self.stuff))
        return found.select(times > 0), times[times > 0]

    def _patch(self, record: StoredRecord, found: InstanceTable, view: View) -> Patch | None:
        """What lies around some segments, with the ids of the record; None if it is too small."""
        hull = (*found.boxes[:, :2].min(axis=0), *found.boxes[:, 2:].max(axis=0))
        (rows, columns), target = view.windows(hull)
        size = (target[0].stop - target[0].start, target[1].stop - target[1].start)
        if min(size) < 1:
            return None
        pixels = record.pixels[:, rows, columns]
        pixels = resize_image(pixels, size, backend=self.resize_backend, planar=self.planar)
        if self.image_format == "BGR":
            pixels = pixels.flip(0)
        ids = resize_ids(record.ids[rows, columns], size)
        # begun and ended with a whole pixel of the record, it may reach over the edge of the image
        rows, columns = (
            slice(max(-part.start, 0), limit - part.start)
            for part, limit in zip(target, view.size, strict=True)
        )
        top, left = (max(part.start, 0) for part in target)
        patch = Patch(top, left, pixels[:, rows, columns], ids[rows, columns])
        return patch.mirrored(view.size[1]) if view.flipped else patch

    def _movable(
        self,
        patch: Patch,
        renewed: np.ndarray,
        found: InstanceTable,
        times: np.ndarray,
        view: View,
    ) -> list[tuple[int, tuple[slice, slice]]]:
        """The id of each further copy's instance, and where that is in the patch.

        Instances that have become too small are taken out of the patch.
        """
        movable = []
        areas = found.areas * view.scale[0] * view.scale[1]
        doubtful = (areas < 4 * max(self.min_area, 1)) | (times > 1)
        for row in np.flatnonzero(doubtful & (found.ids >= INSTANCE_DIVISOR)).tolist():
            own, box = int(renewed[found.ids[row]]), view.inside(found.boxes[row], patch)
            mask = patch.ids[box] == own
            if np.count_nonzero(mask) < max(self.min_area, 1):
                patch.ids[box][mask] = 0
            elif own:  # else no number was free
                movable += [(own, box)] * (int(times[row]) - 1)
        return movable


def _seen(record: StoredRecord, view: View, table: LabelTable) -> InstanceTable:
    """Segments that reach into the image; of stuff, boxes and areas are about right."""
    step = max(min(record.ids.shape) // _SAMPLES, 1)
    stuff = find_segments(record.ids[step // 2 :: step, step // 2 :: step], table)
    stuff = stuff.select(~table.is_thing_id[stuff.ids])
    boxes = stuff.boxes * step + np.array([-step, -step, step, step])
    height, width = record.ids.shape
    boxes = np.clip(boxes, 0, [width, height, width, height])
    stuff = replace(stuff, boxes=boxes, areas=stuff.areas * step**2)
    found = InstanceTable.cat([stuff, record.instances])
    return found.select(view.sees(found.boxes))


def _is_thing(ids: np.ndarray, table: LabelTable, groups: bool = True) -> np.ndarray:
    """bool: which are things, groups of them and such as are not evaluated included.

    Args:
        ids: any shape.
        table: their classes.
        groups: False if there are none, which is sooner.
    """
    instances = ids >= INSTANCE_DIVISOR
    return instances | table.is_thing_id[ids] if groups else instances


def _moved(
    patch: Patch,
    movable: Sequence[tuple[int, tuple[slice, slice]]],
    ids: np.ndarray,
    numbers: _Numbers,
    table: LabelTable,
) -> list[Patch]:
    """Copies of instances of a patch, moved sideways to where they hide no thing.

    Args:
        patch: pasted before them.
        movable: the id of each copy's instance, and its box in the patch.
        ids: (h, w) of the image.
        numbers: ids that are free in it.
        table: the classes.
    """
    if not movable:
        return []
    rows, columns = patch.region
    below = ids[rows].copy()
    np.copyto(below[:, columns], patch.ids, where=patch.ids != 0)
    copies = []
    for own, box in movable:
        mask = patch.ids[box] == own
        renewed = np.where(mask, numbers.renew(own), 0).astype(np.uint16)
        room = ids.shape[1] - mask.shape[1] + 1
        for left in np.random.randint(room, size=_TRIES).tolist():
            here = below[box[0], left : left + mask.shape[1]]
            if not _is_thing(here[mask], table).any():
                here[mask] = renewed[mask]
                pixels = patch.pixels[:, box[0], box[1]]
                copies.append(Patch(patch.top + box[0].start, left, pixels, renewed))
                break
    return copies


class _Numbers:
    """Instance ids that an image does not have yet."""

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = set(map(int, taken))

    def renew(self, own: int) -> int:
        """The first free id of the same class, which is then taken; 0 if there is none.

        Stuff keeps its id.
        """
        if own < INSTANCE_DIVISOR:
            return own
        first = own - own % INSTANCE_DIVISOR
        for number in range(first, first + INSTANCE_DIVISOR):
            if number not in self._taken:
                self._taken.add(number)
                return number
        return 0
