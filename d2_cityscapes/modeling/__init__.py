"""Model parts: ROI heads, anchors, fusion, freezing, and the builder that puts them together."""

from d2_cityscapes.dependencies import lazy_exports
from d2_cityscapes.modeling.freezing.freeze import freeze_modules
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic

__all__ = [
    "DeepLabV3Segmentor",
    "GIoUROIHeads",
    "KMeansAnchorGenerator",
    "MLPMaskHead",
    "MiniDLSemSegHead",
    "RoundedAnchorGenerator",
    "SeamlessBoxHead",
    "SeamlessMaskHead",
    "SeamlessPanoptic",
    "SeamlessROIHeads",
    "SeamlessRPNHead",
    "SimpleFeaturePyramid",
    "SoftmaxMaskRCNNHead",
    "StagedRCNN",
    "StagedSegmentor",
    "UniversalSegmentor",
    "build_model",
    "freeze_modules",
    "fuse_panoptic",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "DeepLabV3Segmentor": "d2_cityscapes.modeling.deeplab",
        "GIoUROIHeads": "d2_cityscapes.modeling.box_head",
        "KMeansAnchorGenerator": "d2_cityscapes.modeling.anchors.generator",
        "MLPMaskHead": "d2_cityscapes.modeling.mask_head",
        "MiniDLSemSegHead": "d2_cityscapes.modeling.panoptic.semantic_head",
        "RoundedAnchorGenerator": "d2_cityscapes.modeling.anchors.rounded",
        "SeamlessBoxHead": "d2_cityscapes.modeling.panoptic.instance_heads",
        "SeamlessMaskHead": "d2_cityscapes.modeling.panoptic.instance_heads",
        "SeamlessPanoptic": "d2_cityscapes.modeling.panoptic.seamless",
        "SeamlessROIHeads": "d2_cityscapes.modeling.panoptic.instance_heads",
        "SeamlessRPNHead": "d2_cityscapes.modeling.panoptic.instance_heads",
        "SimpleFeaturePyramid": "d2_cityscapes.modeling.backbones.pyramid",
        "SoftmaxMaskRCNNHead": "d2_cityscapes.modeling.mask_head",
        "StagedRCNN": "d2_cityscapes.modeling.staged",
        "StagedSegmentor": "d2_cityscapes.modeling.staged",
        "UniversalSegmentor": "d2_cityscapes.modeling.universal.segmentor",
        "build_model": "d2_cityscapes.modeling.build",
    },
)
