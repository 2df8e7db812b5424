"""From a config to a model: Detectron2's builder, plus what spans its components."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model as _build_detectron2_model
from torch import nn

from d2_cityscapes.errors import building
from d2_cityscapes.modeling.backbones.pixels import settle_pixels
from d2_cityscapes.modeling.box_head import check_giou_weight
from d2_cityscapes.modeling.options import are_in_force, put_into_force

__all__ = ["build_model"]


@building("the model")
def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model(cfg)``, with the options of this package in force in any model.

    The meta-architectures of this package see to it themselves. For those of Detectron2, such as
    "GeneralizedRCNN", `put_into_force` is called here.

    The weights are random, but for those of MODEL.TIMM.PRETRAINED: load a checkpoint next.

    Raises:
        D2CityscapesError: an unknown component, one that Detectron2 cannot build, a weight outside
            [0, 1] or one that no GIoUROIHeads would use, freeze patterns or a schedule that cannot
            be used.
    """
    check_giou_weight(cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT)
    cfg = settle_pixels(cfg)
    model = _build_detectron2_model(cfg)
    if not are_in_force(model):
        put_into_force(cfg, model)
    return model
