"""Detectron2 components for instance, semantic and panoptic segmentation of street scenes.

Importing the package registers its components and datasets with Detectron2's registries, so that a
YAML file can select them. Without Detectron2 the plain rooms (data.shards, layers, evaluation's
PanopticQuality, ...) still work and one logged line says how to install it.
"""

import importlib
import logging
import os
import warnings

from d2_cityscapes.dependencies import lazy_exports, require_detectron2
from d2_cityscapes.errors import MissingDetectron2Error

__version__ = "0.1.0"
__all__ = ["__version__", "add_d2_cityscapes_config", "get_cfg", "load", "register_components"]

__getattr__ = lazy_exports(
    __name__,
    {
        "get_cfg": "d2_cityscapes.config",
        "add_d2_cityscapes_config": "d2_cityscapes.config",
        "load": "d2_cityscapes.engine.prediction.loading",
    },
)

_REGISTERING = (
    "data.register",
    "data.shard_folders",
    "engine.checkpoints.address",
    "modeling.anchors.generator",
    "modeling.anchors.rounded",
    "modeling.backbones.build",
    "modeling.box_head",
    "modeling.deeplab",
    "modeling.mask_head",
    "modeling.panoptic.backbone",
    "modeling.panoptic.instance_heads",
    "modeling.panoptic.seamless",
    "modeling.panoptic.semantic_head",
    "modeling.staged",
    "modeling.universal.segmentor",
)

# A command (d2c.py) sets this while it is imported, and registers when it has read its arguments.
_PLAIN = bool(os.environ.get("D2_CITYSCAPES_PLAIN"))


def register_components() -> None:
    """Register components and datasets with Detectron2, as importing this package does.

    Does nothing where that is done already.

    Raises:
        MissingDetectron2Error: there is no Detectron2.
    """
    require_detectron2()
    with warnings.catch_warnings():  # fvcore's use of TorchScript concerns no user of ours
        warnings.filterwarnings("ignore", "`torch.jit.script", FutureWarning)
        for room in _REGISTERING:
            importlib.import_module(f"{__name__}.{room}")


if not _PLAIN:
    try:
        register_components()
    except MissingDetectron2Error as error:
        logging.getLogger(__name__).warning(error)
