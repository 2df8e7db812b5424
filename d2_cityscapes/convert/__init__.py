"""Weights from one code base's names and classes to another's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2_cityscapes.convert.kinds import CONVERSIONS, ConversionError
from d2_cityscapes.dependencies import lazy_exports
from d2_cityscapes.files import check_outputs

__all__ = [
    "CONVERSIONS",
    "ConversionError",
    "coco_to_cityscapes",
    "convert_file",
    "map_classes",
    "mask2former_to_universal",
    "mmdetection_to_detectron2",
    "seamseg_to_detectron2",
    "torchvision_rcnn_to_detectron2",
    "torchvision_to_detectron2",
    "torchvision_to_segmentor",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "coco_to_cityscapes": "d2_cityscapes.convert.coco",
        "map_classes": "d2_cityscapes.convert.classes",
        "mask2former_to_universal": "d2_cityscapes.convert.mask2former",
        "mmdetection_to_detectron2": "d2_cityscapes.convert.mmdetection",
        "seamseg_to_detectron2": "d2_cityscapes.convert.seamseg",
        "torchvision_rcnn_to_detectron2": "d2_cityscapes.convert.torchvision_rcnn",
        "torchvision_to_detectron2": "d2_cityscapes.convert.torchvision_resnet",
        "torchvision_to_segmentor": "d2_cityscapes.convert.torchvision_deeplab",
    },
    detectron2=False,
)


def convert_file(
    kind: str, input: str | Path, output: str | Path, **options: Any
) -> tuple[str, ...]:
    """Convert a file of weights; the output appears whole or not at all.

    Args:
        kind: one of `CONVERSIONS`.
        input: the file to read; it stays as it is.
        output: the file to write, or for "to-detectron2" the folder.
        options: "coco-to-cityscapes": rider, seed. "vistas-to-cityscapes", "idd-to-cityscapes",
            "torchvision-segmentor": seed. "torchvision-rcnn": norm_epsilon. "to-detectron2",
            "to-safetensors": config_file. All but "to-detectron2": details, a line for each tensor.

    Returns:
        Lines that say what was converted, what was left behind, and what to know about it.

    Raises:
        D2CityscapesError: an input that cannot be converted, or an output that cannot be written or
            is the input.
    """
    if kind not in CONVERSIONS:
        raise ConversionError(f"no conversion {kind!r}; there are {', '.join(CONVERSIONS)}")
    input, output = Path(input), Path(output)
    if kind != "to-detectron2":  # which writes a folder, and looks at it itself
        check_outputs([output], [input])
    module, name = CONVERSIONS[kind]
    convert: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return convert(input, output, **options)
