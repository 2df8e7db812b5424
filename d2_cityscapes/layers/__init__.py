"""Layers and losses without any dependency on Detectron2."""

from d2_cityscapes.layers.losses import giou_loss

__all__ = ["giou_loss"]
