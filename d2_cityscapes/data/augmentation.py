"""An image and its id map under Detectron2's augmentations.

Detectron2's transforms work on (H, W, 3) arrays and resize with Pillow. Records are (3, H, W), and
the two transforms of every recipe, resize and flip, are several times faster on that layout, so
they are done here; any other transform is given the array that it expects.

Shape letters: H, W pixels before a transform, h, w after it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable

__all__ = [
    "RESIZE_BACKENDS",
    "ImageAndIds",
    "build_augmentation",
    "check_resize_backend",
    "resize_image",
]

RESIZE_BACKENDS = ("torch", "pil")


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Resize, and in training crop and flip, as INPUT says.

    They are Detectron2's own, but that INPUT.FIXED_SIZE replaces its rules of the short edge where
    it is set, and that the crop comes after the resize.
    """
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if cfg.INPUT.FIXED_SIZE:
        augmentations[0] = T.Resize(_check_fixed_size(cfg.INPUT.FIXED_SIZE))
    if is_train and cfg.INPUT.CROP.ENABLED:
        crop = T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)
        augmentations.insert(1, crop)  # between resize and flip
    return augmentations


def _check_fixed_size(size: Sequence[int]) -> tuple[int, int]:
    """(height, width) itself, if it is a size."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise D2CityscapesError(
            f"INPUT.FIXED_SIZE is {list(size)}: give [height, width] in pixels, or [] for none"
        )
    return size[0], size[1]


def check_resize_backend(name: str) -> str:
    """The name itself, if it is one of `RESIZE_BACKENDS`."""
    if name not in RESIZE_BACKENDS:
        raise D2CityscapesError(
            f"INPUT.RESIZE_BACKEND {name!r}: use {' or '.join(RESIZE_BACKENDS)}"
        )
    return name


class ImageAndIds:
    """What Detectron2's augmentations take in place of its ``AugInput``.

    Attributes:
        pixels: (3, h, w) uint8 tensor.
        ids: (h, w) uint16 instance ids, or None.
    """

    def __init__(
        self,
        pixels: torch.Tensor,
        ids: np.ndarray | None,
        table: LabelTable,
        *,
        resize_backend: str = "torch",
    ) -> None:
        """
        Args:
            pixels: (3, H, W) uint8; the channel order does not matter.
            ids: (H, W) uint16 instance ids, or None where there are no targets to build.
            table: the classes.
            resize_backend: one of `RESIZE_BACKENDS`, see `resize_image`.
        """
        self.pixels = pixels
        self.ids = ids
        self._table = table
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
        return self._table.train_id_of[self.ids]

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
        bilinear = getattr(transform, "interp", None) == Image.Resampling.BILINEAR
        if isinstance(transform, T.ResizeTransform) and bilinear:
            size = (transform.new_h, transform.new_w)
            return resize_image(self.pixels, size, backend=self._resize_backend)
        before = self.image
        after = transform.apply_image(before)
        if after is before:
            return self.pixels
        return torch.from_numpy(np.ascontiguousarray(after.transpose(2, 0, 1)))


def resize_image(
    pixels: torch.Tensor, size: tuple[int, int], *, backend: str = "torch"
) -> torch.Tensor:
    """Bilinear resize with antialiasing of a (3, H, W) uint8 image to (3, h, w).

    The result may be interleaved in memory (torch's channels_last).

    Args:
        pixels: the image.
        size: (h, w).
        backend: "pil" is Pillow, as in Detectron2; "torch" is the same filter, some four times
            faster, and differs by up to 2 grey levels in about one value of a hundred.
    """
    if tuple(pixels.shape[1:]) == tuple(size):
        return pixels
    if check_resize_backend(backend) == "torch":
        # torch works on (H, W, 3); of anything else it makes a copy, in new memory each time
        interleaved = _room(tuple(pixels.shape[1:]), threading.get_ident())
        torch.stack(pixels.unbind(0), dim=-1, out=interleaved)
        resized = torch.nn.functional.interpolate(
            interleaved.permute(2, 0, 1)[None], size=size, mode="bilinear", antialias=True
        )
        return resized[0]
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    array = np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


@functools.lru_cache(maxsize=2)
def _room(size: tuple[int, int], thread: int) -> torch.Tensor:
    """(H, W, 3) uint8 to be written over, the same for each call in a thread."""
    return torch.empty(*size, 3, dtype=torch.uint8)


def _ids_after(transform: T.Transform, ids: np.ndarray) -> np.ndarray:
    if isinstance(transform, T.ResizeTransform):
        rows = _nearest(ids.shape[0], transform.new_h)
        cols = _nearest(ids.shape[1], transform.new_w)
        return ids.take(rows, axis=0).take(cols, axis=1)
    if isinstance(transform, T.HFlipTransform):  # as numpy's flip, but several times faster
        return torch.from_numpy(ids.view(np.int16)).flip(1).numpy().view(np.uint16)
    return transform.apply_segmentation(ids)


def _nearest(length: int, new_length: int) -> np.ndarray:
    """(new_length,) source pixel under the centre of each new pixel, as in Pillow's resize.

    Detectron2's own way for wide integers, torch's "nearest", is off by up to half a pixel.
    """
    return (2 * np.arange(new_length) + 1) * length // (2 * new_length)
