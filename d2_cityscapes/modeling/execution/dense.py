"""How the dense part of a model computes: memory format, compilation, checkpointing, folded norms.

None of it changes a name or a value of the model's tensors: checkpoints, MODEL.FREEZE and
converters see the same model whatever is on.
"""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.execution.compilation import check_compiler, compile_dense_parts
from d2_cityscapes.modeling.execution.folded_norm import fold_frozen_norms
from d2_cityscapes.modeling.execution.recomputation import checkpoint_stages

__all__ = ["set_dense_options", "use_channels_last"]

logger = logging.getLogger(__name__)


def set_dense_options(cfg: CfgNode, model: nn.Module) -> None:
    """Put MODEL.COMPILE, CHANNELS_LAST, ACTIVATION_CHECKPOINTING and FOLD_FROZEN_NORM into force.

    For training and evaluation alike; with all of them off the model stays as it is. Call it once,
    before the optimizer and a data-parallel wrapper are made.

    Raises:
        D2CityscapesError: an option that reaches nothing in this model, or no compiler.
    """
    if cfg.MODEL.RESNETS.FOLD_FROZEN_NORM:
        logger.info("Frozen batch norms folded: %d", fold_frozen_norms(model))
    if cfg.SOLVER.CHANNELS_LAST:
        use_channels_last(model)
    if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
        logger.info("Stages of the backbone checkpointed: %d", checkpoint_stages(model))
    if cfg.MODEL.COMPILE:
        check_compiler(cfg.MODEL.DEVICE)
        compile_dense_parts(model)


def use_channels_last(model: nn.Module) -> None:
    """Keep the 4-d weights of a model, and the images that enter its backbone, pixel by pixel.

    Maps follow their convolutions. RoIAlign takes a map in either format and gives its regions map
    by map, which the convolutions of the mask head change back.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise D2CityscapesError(
            f"SOLVER.CHANNELS_LAST: {type(model).__name__} has no backbone: set it to False"
        )
    model.to(memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(_images_channels_last)


def _images_channels_last(backbone: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images, *others = inputs
    return images.contiguous(memory_format=torch.channels_last), *others
