"""How the dense part of a model computes: memory format, compilation, checkpointing, folded norms."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

__all__ = ["set_dense_options"]


def set_dense_options(cfg: CfgNode, model: nn.Module) -> None:
    """Put MODEL.COMPILE, CHANNELS_LAST, ACTIVATION_CHECKPOINTING and FOLD_FROZEN_NORM into force."""
