"""The augmentations that INPUT asks for, in the order in which they act."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T

from d2_cityscapes.data.augmentation.color_jitter import ColorJitter
from d2_cityscapes.data.augmentation.copy_paste import CopyPaste
from d2_cityscapes.data.augmentation.scale_jitter import PadTo, ScaleJitter
from d2_cityscapes.errors import D2CityscapesError

__all__ = ["build_augmentation"]


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Resize, and in training crop, paste, colours and flip, as INPUT says.

    Resize and flip are Detectron2's own, but that INPUT.FIXED_SIZE replaces its rules of the short
    edge where it is set, and that the crop comes after the resize. With INPUT.SCALE_JITTER one
    `ScaleJitter` stands for both, and what it leaves smaller is padded in the end.

    Raises:
        D2CityscapesError: a value that cannot be used, or two keys that exclude each other.
    """
    augmentations = detection_utils.build_augmentation(cfg, is_train)
    if cfg.INPUT.FIXED_SIZE:
        augmentations[0] = T.Resize(_check_fixed_size(cfg.INPUT.FIXED_SIZE))
    if not is_train:
        return augmentations
    resize, *flips = augmentations
    found: list[T.Augmentation] = [resize]
    if cfg.INPUT.CROP.ENABLED:
        found.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    scaled = None
    if cfg.INPUT.SCALE_JITTER.ENABLED:
        _check_exclusive(cfg)
        jitter = cfg.INPUT.SCALE_JITTER
        scaled = ScaleJitter(
            resize, jitter.RANGE, jitter.CROP_SIZE, jitter.SINGLE_CATEGORY_MAX_AREA
        )
        found = [scaled]
    if cfg.INPUT.COPY_PASTE.PROB != 0:
        paste = cfg.INPUT.COPY_PASTE
        found.append(
            CopyPaste(
                paste.PROB,
                paste.THINGS,
                paste.STUFF,
                paste.SMALL_COPIES,
                resize=scaled or resize,
                flip=cfg.INPUT.RANDOM_FLIP == "horizontal",
                min_area=cfg.INPUT.MIN_INSTANCE_AREA,
                image_format=cfg.INPUT.FORMAT,
                resize_backend=cfg.INPUT.RESIZE_BACKEND,
                planar=cfg.INPUT.COLOR_JITTER.ENABLED,
            )
        )
    if cfg.INPUT.COLOR_JITTER.ENABLED:
        found.append(ColorJitter(cfg.INPUT.FORMAT))
    found += flips
    if scaled:
        found.append(PadTo(scaled.crop_size))
    return found


def _check_fixed_size(size: Sequence[int]) -> tuple[int, int]:
    """(height, width) itself, if it is a size."""
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise D2CityscapesError(
            f"INPUT.FIXED_SIZE is {list(size)}: give [height, width] in pixels, or [] for none"
        )
    return size[0], size[1]


def _check_exclusive(cfg: CfgNode) -> None:
    """INPUT.SCALE_JITTER decides on scale and crop alone."""
    others = {
        "INPUT.CROP.ENABLED False": cfg.INPUT.CROP.ENABLED,
        "INPUT.FIXED_SIZE []": bool(cfg.INPUT.FIXED_SIZE),
    }
    wanted = [setting for setting, is_other in others.items() if is_other]
    if wanted:
        raise D2CityscapesError(
            "INPUT.SCALE_JITTER.ENABLED True scales and crops by itself: set "
            f"{' and '.join(wanted)}, or leave it off"
        )
