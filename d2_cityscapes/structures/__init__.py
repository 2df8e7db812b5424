"""Data structures beside Detectron2's own."""

from d2_cityscapes.dependencies import lazy_exports

__all__ = ["CroppedMasks", "IdMapMasks"]

__getattr__ = lazy_exports(
    __name__,
    {
        "CroppedMasks": "d2_cityscapes.structures.cropped_masks",
        "IdMapMasks": "d2_cityscapes.structures.id_map_masks",
    },
)
