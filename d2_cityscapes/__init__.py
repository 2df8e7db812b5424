"""Detectron2 components for instance, semantic and panoptic segmentation of street scenes.

Importing the package registers its components and datasets with Detectron2's registries, so that a
YAML file can select them. Without Detectron2 the plain rooms (data.shards, layers, evaluation's
PanopticQuality, ...) still work and one logged line says how to install it.
"""

import importlib
import logging
import os
import warnings

from d2_cityscapes.dependencies import MISSING_DETECTRON2, has_detectron2, lazy_exports

__version__ = "0.1.0"
__all__ = ["__version__", "add_d2_cityscapes_config", "get_cfg"]

__getattr__ = lazy_exports(
    __name__,
    {
        "get_cfg": "d2_cityscapes.config",
        "add_d2_cityscapes_config": "d2_cityscapes.config",
    },
)

_REGISTERING = (
    "data.register",
    "modeling.anchors.generator",
    "modeling.box_head",
    "modeling.deeplab",
    "modeling.mask_head",
    "modeling.panoptic.backbone",
    "modeling.panoptic.instance_heads",
    "modeling.panoptic.seamless",
    "modeling.panoptic.semantic_head",
    "modeling.staged",
)

# A command that uses plain rooms only may set this: it starts in 0.2 s instead of 3, and does not
# speak of Detectron2.
_PLAIN = bool(os.environ.get("D2_CITYSCAPES_PLAIN"))

if has_detectron2() and not _PLAIN:
    with warnings.catch_warnings():  # fvcore's use of TorchScript concerns no user of ours
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        for _room in _REGISTERING:
            importlib.import_module(f"{__name__}.{_room}")
elif not _PLAIN:
    logging.getLogger(__name__).warning(MISSING_DETECTRON2)
