"""From a config to a model: Detectron2's builder, plus what spans its components."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.modeling import build_model as _build_detectron2_model
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.box_head import GIoUROIHeads, check_giou_weight
from d2_cityscapes.modeling.execution.dense import set_dense_options
from d2_cityscapes.modeling.freezing.freeze import freeze_modules

__all__ = ["build_model"]

logger = logging.getLogger(__name__)


def build_model(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model(cfg)`` with the two settings that span components put into force.

    * MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = w: `GIoUROIHeads` weights its own losses. The RPN and a
      semantic head get their (1 - w) here, once, through the stock attribute ``loss_weight``, so
      that *every* standard loss is (1 - w) times stock.
    * MODEL.FREEZE: what is frozen at the first iteration is frozen here, and the table of frozen
      and trainable parts logged. `FreezeHook` guards it, and unfreezes by MODEL.FREEZE.SCHEDULE
      what `build_optimizer` of this package has counted in.

    The weights are random: load a checkpoint next.

    Raises:
        D2CityscapesError: an unknown component, a weight outside [0, 1] or one that no GIoUROIHeads
            would use, freeze patterns or a schedule that cannot be used.
    """
    check_giou_weight(cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT)
    try:
        model = _build_detectron2_model(cfg)
    except KeyError as error:
        if "registry" not in str(error):
            raise
        raise D2CityscapesError(str(error.args[0])) from error
    _weight_standard_losses(model, cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT)
    freeze = cfg.MODEL.FREEZE
    if freeze.MODULES or freeze.SCHEDULE:
        report = freeze_modules(
            model, freeze.MODULES, freeze.SCHEDULE, max_iter=cfg.SOLVER.MAX_ITER
        )
        logger.info("Frozen: %s\n%s", ", ".join(report.frozen_modules), report.table())
    set_dense_options(cfg, model)
    return model


def _weight_standard_losses(model: nn.Module, giou_weight: float) -> None:
    if giou_weight == 0:
        return
    roi_heads = getattr(model, "roi_heads", None)
    if not isinstance(roi_heads, GIoUROIHeads):
        found = f"uses {type(roi_heads).__name__}" if roi_heads else "has no ROI heads"
        raise D2CityscapesError(
            f"MODEL.ROI_BOX_HEAD.GIOU_WEIGHT is {giou_weight}, but the model {found}: set it to 0, "
            "or MODEL.ROI_HEADS.NAME to GIoUROIHeads"
        )
    for name in ("proposal_generator", "sem_seg_head"):
        part = getattr(model, name, None)
        if part is None:
            continue
        weight = part.loss_weight
        if isinstance(weight, dict):
            part.loss_weight = {key: value * (1 - giou_weight) for key, value in weight.items()}
        else:
            part.loss_weight = weight * (1 - giou_weight)
