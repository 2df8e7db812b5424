"""Which conversions there are, known without importing what they need."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["CONVERSIONS", "RIDERS", "ConversionError"]

# kind -> module and function (input, output, **options) -> lines of a report
CONVERSIONS = {
    "torchvision-deeplab": ("torchvision_resnet", "convert_torchvision_file"),
    "torchvision-resnet": ("torchvision_resnet", "convert_torchvision_file"),
    "torchvision-segmentor": ("torchvision_deeplab", "convert_torchvision_segmentor_file"),
    "torchvision-rcnn": ("torchvision_rcnn", "convert_torchvision_rcnn_file"),
    "mmdetection": ("mmdetection", "convert_mmdetection_file"),
    "coco-to-cityscapes": ("coco", "convert_coco_file"),
    "vistas-to-cityscapes": ("classes", "convert_vistas_file"),
    "idd-to-cityscapes": ("classes", "convert_idd_file"),
    "seamseg": ("seamseg", "convert_seamseg_file"),
    "mask2former": ("mask2former", "convert_mask2former_file"),
    "to-safetensors": ("portable", "convert_to_safetensors"),
    "to-detectron2": ("stock", "convert_to_stock"),  # the only one that needs Detectron2
}

# of "coco-to-cityscapes": how the rows of class rider, which COCO does not have, are made
RIDERS = {
    "random": "a new class of Detectron2: N(0, 0.01) or N(0, 0.001), bias 0",
    "blob_stats": "N(mean, standard deviation) of the whole COCO tensor, as Detectron's converter",
    "person": "a copy of person",
}


class ConversionError(D2CityscapesError):
    """Weights that cannot be read, converted or written."""
