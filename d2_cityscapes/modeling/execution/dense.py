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
from d2_cityscapes.modeling.execution.compilation import (
    check_compiler,
    check_mode,
    compile_dense_parts,
)
from d2_cityscapes.modeling.execution.folded_norm import fold_frozen_norms
from d2_cityscapes.modeling.execution.padding import pad_to_multiple
from d2_cityscapes.modeling.execution.recomputation import checkpoint_stages

__all__ = ["set_dense_options", "use_channels_last"]

logger = logging.getLogger(__name__)


def set_dense_options(cfg: CfgNode, model: nn.Module) -> None:
    """Put the keys of how it computes into force.

    They are MODEL.COMPILE with COMPILE_MODE, MODEL.RESNETS.FOLD_FROZEN_NORM,
    MODEL.BACKBONE.ACTIVATION_CHECKPOINTING, SOLVER.CHANNELS_LAST and INPUT.SIZE_DIVISIBILITY.

    For training and evaluation alike; with all of them off the model stays as it is. Call it once,
    before the optimizer and a data-parallel wrapper are made.

    Raises:
        D2CityscapesError: an option that reaches nothing in this model, or no compiler.
    """
    if cfg.MODEL.RESNETS.FOLD_FROZEN_NORM:
        logger.info("Frozen batch norms folded: %d", fold_frozen_norms(model))
    if cfg.SOLVER.CHANNELS_LAST:
        use_channels_last(model, device=cfg.MODEL.DEVICE)
    if cfg.MODEL.BACKBONE.ACTIVATION_CHECKPOINTING:
        logger.info("Stages of the backbone checkpointed: %d", checkpoint_stages(model))
    if cfg.INPUT.SIZE_DIVISIBILITY:
        pad_to_multiple(model, cfg.INPUT.SIZE_DIVISIBILITY)
    if cfg.MODEL.COMPILE:
        mode, buckets = cfg.MODEL.COMPILE_MODE, cfg.INPUT.SIZE_DIVISIBILITY > 0
        check_mode(mode, accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS)
        check_compiler(cfg.MODEL.DEVICE)
        compile_dense_parts(model, mode=mode, sizes_vary=not buckets)


def use_channels_last(model: nn.Module, *, device: str = "cpu") -> None:
    """Keep the 4-d weights of a model, and the images that enter its backbone, pixel by pixel.

    Maps follow their convolutions. RoIAlign takes a map in either format and gives its regions map
    by map, which the convolutions of the mask head change back. So does group norm on a GPU, once
    before it and once behind, forward and backward: a model with it on a GPU gets a warning.

    Args:
        model: with a backbone.
        device: where it will compute.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise D2CityscapesError(
            f"SOLVER.CHANNELS_LAST: {type(model).__name__} has no backbone: set it to False"
        )
    norms = sum(isinstance(layer, nn.GroupNorm) for layer in model.modules())
    if norms and not device.startswith("cpu"):
        logger.warning(
            "SOLVER.CHANNELS_LAST: %d group norms compute map by map on a GPU, and turn their maps "
            "round twice; it is meant for models with batch norms, frozen or not",
            norms,
        )
    model.to(memory_format=torch.channels_last)
    backbone.register_forward_pre_hook(_images_channels_last)


def _images_channels_last(backbone: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    images, *others = inputs
    return images.contiguous(memory_format=torch.channels_last), *others
