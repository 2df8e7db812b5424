"""What training does to an image and its id map before the targets are made of them."""

from d2_cityscapes.data.augmentation.build import build_augmentation
from d2_cityscapes.data.augmentation.image_and_ids import ImageAndIds
from d2_cityscapes.data.augmentation.resizing import (
    RESIZE_BACKENDS,
    check_resize_backend,
    resize_image,
)

__all__ = [
    "RESIZE_BACKENDS",
    "ImageAndIds",
    "build_augmentation",
    "check_resize_backend",
    "resize_image",
]
