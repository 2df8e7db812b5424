"""Model parts: ROI heads, anchors, fusion, freezing, and the builder that puts them together."""

from d2_cityscapes.dependencies import lazy_exports
from d2_cityscapes.modeling.freeze import freeze_modules
from d2_cityscapes.modeling.fusion import fuse_panoptic

__all__ = [
    "DeepLabV3Segmentor",
    "GIoUROIHeads",
    "KMeansAnchorGenerator",
    "SeamlessPanoptic",
    "build_model",
    "freeze_modules",
    "fuse_panoptic",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DeepLabV3Segmentor": "d2_cityscapes.modeling.deeplab",
        "GIoUROIHeads": "d2_cityscapes.modeling.box_head",
        "KMeansAnchorGenerator": "d2_cityscapes.modeling.anchors",
        "SeamlessPanoptic": "d2_cityscapes.modeling.seamless",
        "build_model": "d2_cityscapes.modeling.build",
    },
)
