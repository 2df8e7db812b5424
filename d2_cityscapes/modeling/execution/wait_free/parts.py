"""Which parts of a model become wait-free."""

from __future__ import annotations

from detectron2.modeling import StandardROIHeads
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, MaskRCNNConvUpsampleHead
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.box_head import GIoUOutputLayers, GIoUROIHeads
from d2_cityscapes.modeling.execution.mask_loss import WaitFreeConvUpsampleHead
from d2_cityscapes.modeling.execution.wait_free.box_predictor import (
    WaitFreeGIoUOutputLayers,
    WaitFreeOutputLayers,
)
from d2_cityscapes.modeling.execution.wait_free.pooler import WaitFreePooler
from d2_cityscapes.modeling.execution.wait_free.roi_heads import (
    WaitFreeGIoUROIHeads,
    WaitFreeROIHeads,
    WaitFreeSeamlessROIHeads,
)
from d2_cityscapes.modeling.execution.wait_free.rpn import WaitFreeRPN
from d2_cityscapes.modeling.panoptic.instance_heads import SeamlessROIHeads

__all__ = ["stop_waiting"]

_WAIT_FREE: dict[type[nn.Module], type[nn.Module]] = {
    RPN: WaitFreeRPN,
    StandardROIHeads: WaitFreeROIHeads,
    GIoUROIHeads: WaitFreeGIoUROIHeads,
    SeamlessROIHeads: WaitFreeSeamlessROIHeads,
    FastRCNNOutputLayers: WaitFreeOutputLayers,
    GIoUOutputLayers: WaitFreeGIoUOutputLayers,
    MaskRCNNConvUpsampleHead: WaitFreeConvUpsampleHead,
    ROIPooler: WaitFreePooler,
}


def stop_waiting(model: nn.Module) -> int:
    """Let the RPN and the ROI heads of a model train without waits, in place.

    Parts of exactly these types change their class, nothing else. An RPN or a box predictor with
    another box loss than smooth L1, or other deltas than those of `Box2BoxTransform`, stays.

    Returns:
        How many parts.

    Raises:
        D2CityscapesError: there are none.
    """
    parts = [part for part in model.modules() if type(part) in _WAIT_FREE and _can(part)]
    if all(type(part) is ROIPooler for part in parts):  # only the heads tell it anything
        raise D2CityscapesError(
            f"MODEL.WAIT_FREE: {type(model).__name__} has no RPN or ROI heads that it would change"
            ": set it to False"
        )
    for part in parts:
        part.__class__ = _WAIT_FREE[type(part)]
    return len(parts)


def _can(part: nn.Module) -> bool:
    transform = getattr(part, "box2box_transform", None)
    if transform is None:
        return True
    return isinstance(transform, Box2BoxTransform) and part.box_reg_loss_type == "smooth_l1"
