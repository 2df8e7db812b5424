"""Losses that count small instances more: INPUT.SMALL_INSTANCE_WEIGHT.

The pixels of small instances have a factor in the semantic loss, as in Cheng et al., "Panoptic-
DeepLab", CVPR 2020, section 4.1 (3, below 4096 px). Here so do their regions in the loss of the
mask head. The mapper says which they are: "sem_seg_weights" (H, W) of an image, "gt_weights" (N,)
of its instances. A loss is the mean of factor times loss, so that with factors of 1 it is the plain
one. Boxes and classes of regions, and the RPN, are not weighted: they count each object as often as
it is sampled, whatever its size.

Shape letters: N images, C classes, H W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, MaskRCNNConvUpsampleHead
from torch import Tensor, nn
from torch.nn import functional as F

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.losses import map_cross_entropy
from d2_cityscapes.modeling.execution.mask_loss import WaitFreeConvUpsampleHead, WaitFreeMaskLoss
from d2_cityscapes.modeling.panoptic.instance_heads import SeamlessMaskHead
from d2_cityscapes.modeling.panoptic.semantic_head import MiniDLSemSegHead

__all__ = ["are_weighted", "weigh_small_instances", "weighted_semantic_losses"]

_WEIGHTS = "sem_seg_weights"
# Architectures that look for weights of pixels; no others have a semantic loss of that kind.
_SEMANTIC = ("StagedSegmentor", "SeamlessPanoptic", "DeepLabV3Segmentor")


def are_weighted(batched_inputs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a batch has weights of pixels."""
    return bool(batched_inputs) and _WEIGHTS in batched_inputs[0]


def weighted_semantic_losses(
    head: Any,
    features: Mapping[str, Tensor],
    batched_inputs: Sequence[Mapping[str, Any]],
    device: torch.device,
) -> dict[str, Tensor]:
    """{"loss_sem_seg"} of a batch with weights of pixels.

    Args:
        head: a `SemSegFPNHead` or `MiniDLSemSegHead`.
        features: of the padded batch.
        batched_inputs: "sem_seg" (H, W) classes and "sem_seg_weights" (H, W) float32 of each.
        device: of the features.
    """
    classes = [x["sem_seg"].to(device) for x in batched_inputs]
    weights = [x[_WEIGHTS].to(device) for x in batched_inputs]
    if isinstance(head, MiniDLSemSegHead):
        return head(features, classes, weights)[1]
    logits = F.interpolate(
        head.layers(features).float(),
        scale_factor=head.common_stride,
        mode="bilinear",
        align_corners=False,
    )
    total, counted = logits.sum() * 0, torch.zeros((), dtype=torch.int64, device=device)
    for own, target, weight in zip(logits, classes, weights, strict=True):
        inside = own[None, :, : target.shape[0], : target.shape[1]]
        total = total + map_cross_entropy(
            inside, target[None], ignore_value=head.ignore_value, weights=weight[None]
        )
        counted = counted + (target != head.ignore_value).sum()
    return {"loss_sem_seg": total / counted.clamp(min=1) * head.loss_weight}


def weigh_small_instances(model: nn.Module) -> None:
    """Let the losses of a model look at the weights, in place.

    Raises:
        D2CityscapesError: a semantic or a mask loss that does not, or none of either.
    """
    key, name = "INPUT.SMALL_INSTANCE_WEIGHT", type(model).__name__
    semantic = any(isinstance(model, META_ARCH_REGISTRY.get(own)) for own in _SEMANTIC)
    head = getattr(model, "sem_seg_head", None)
    if head is not None and not (semantic and isinstance(head, SemSegFPNHead | MiniDLSemSegHead)):
        raise D2CityscapesError(
            f"{key}: the semantic loss of {name} with {type(head).__name__} has no weights: set it "
            "to 1.0, or take StagedSegmentor or SeamlessPanoptic with SemSegFPNHead or "
            "MiniDLSemSegHead"
        )
    masks = [part for part in model.modules() if isinstance(part, BaseMaskRCNNHead)]
    for part in masks:
        if type(part) is MaskRCNNConvUpsampleHead:
            part.__class__ = WaitFreeConvUpsampleHead  # the same losses, to the bit
        if not isinstance(part, WaitFreeMaskLoss | SeamlessMaskHead):
            raise D2CityscapesError(
                f"{key}: the loss of {type(part).__name__} has no weights: set it to 1.0, or "
                "MODEL.ROI_MASK_HEAD.NAME to MaskRCNNConvUpsampleHead"
            )
    if not semantic and not masks:
        raise D2CityscapesError(
            f"{key}: {name} has neither a semantic nor a mask loss that has weights: set it to 1.0"
        )
