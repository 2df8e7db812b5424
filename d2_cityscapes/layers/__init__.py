"""Layers and losses without any dependency on Detectron2."""

from d2_cityscapes.layers.losses import giou_loss
from d2_cityscapes.layers.mask_targets import mask_coverage

__all__ = ["giou_loss", "mask_coverage"]
