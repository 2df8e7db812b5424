"""Layers and losses without any dependency on Detectron2."""

from d2_cityscapes.layers.losses import bootstrapped_cross_entropy, giou_loss
from d2_cityscapes.layers.mask_targets import mask_coverage
from d2_cityscapes.layers.mini_dl import MiniDL

__all__ = ["MiniDL", "bootstrapped_cross_entropy", "giou_loss", "mask_coverage"]
