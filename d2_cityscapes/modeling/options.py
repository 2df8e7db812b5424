"""The options that span the parts of a model: what is frozen, and how its dense part computes.

Put into force once, when the parts are together: by the meta-architectures of this package
themselves, whoever builds them, and by `d2_cityscapes.modeling.build.build_model` for those of
Detectron2.
"""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.box_head import GIoUROIHeads
from d2_cityscapes.modeling.execution.dense import set_dense_options
from d2_cityscapes.modeling.execution.exact_pooling import pool_exactly
from d2_cityscapes.modeling.execution.lean_pooling import pool_without_indices
from d2_cityscapes.modeling.execution.wait_free.parts import stop_waiting
from d2_cityscapes.modeling.freezing.freeze import freeze_modules, plan_freezing
from d2_cityscapes.modeling.freezing.guard import await_schedule, keep_in_eval
from d2_cityscapes.modeling.freezing.state import norm_layers
from d2_cityscapes.modeling.small_instances import weigh_small_instances

__all__ = ["are_in_force", "nothing", "put_into_force"]

logger = logging.getLogger(__name__)


def put_into_force(cfg: CfgNode, model: nn.Module) -> None:
    """MODEL.FREEZE and WAIT_FREE, the dense options and exact pooling, once.

    What is frozen at the first iteration is frozen here, and the table of frozen and trainable
    parts logged. `FreezeHook` guards it, and unfreezes by MODEL.FREEZE.SCHEDULE what
    `build_optimizer` of this package has counted in.

    Raises:
        D2CityscapesError: freeze patterns or a schedule that cannot be used, an option that
            reaches nothing in this model, or a GIOU_WEIGHT that no `GIoUROIHeads` would use.
    """
    _check_giou(cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT, model)
    freeze = cfg.MODEL.FREEZE
    if freeze.MODULES or freeze.SCHEDULE:
        report = freeze_modules(
            model, freeze.MODULES, freeze.SCHEDULE, max_iter=cfg.SOLVER.MAX_ITER
        )
        frozen = plan_freezing(model, freeze.MODULES, freeze.SCHEDULE).at(0).frozen
        keep_in_eval(model, norm_layers(model, frozen) if freeze.NORM_EVAL else ())
        await_schedule(model, bool(freeze.SCHEDULE))
        logger.info("Frozen: %s\n%s", ", ".join(report.frozen_modules), report.table())
    if cfg.INPUT.SMALL_INSTANCE_WEIGHT != 1:
        weigh_small_instances(model)
    set_dense_options(cfg, model)
    pool_exactly(model)
    pool_without_indices(model)
    if cfg.MODEL.WAIT_FREE:
        logger.info("Parts that do not wait for the GPU: %d", stop_waiting(model))
    vars(model)["options_in_force"] = True


def nothing(model: nn.Module) -> None:
    """In place of `put_into_force`, for a model that is not built from a config."""


def are_in_force(model: nn.Module) -> bool:
    """Whether `put_into_force` was called."""
    return "options_in_force" in vars(model)


def _check_giou(giou_weight: float, model: nn.Module) -> None:
    roi_heads = getattr(model, "roi_heads", None)
    if giou_weight != 0 and not isinstance(roi_heads, GIoUROIHeads):
        found = f"uses {type(roi_heads).__name__}" if roi_heads else "has no ROI heads"
        raise D2CityscapesError(
            f"MODEL.ROI_BOX_HEAD.GIOU_WEIGHT is {giou_weight}, but the model {found}: set it to 0, "
            "or MODEL.ROI_HEADS.NAME to GIoUROIHeads"
        )
