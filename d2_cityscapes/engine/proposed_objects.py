"""The work of a trained network for the RoI heads of one with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import nn

__all__ = ["objects_proposed"]


def objects_proposed(cfg: CfgNode) -> Callable[[nn.Module, tuple, tuple], tuple]:
    """A forward hook for an RPN: in training, boxes of objects replace its last proposals.

    There are as many as the RoI heads take for foreground at most, so that these have the work that
    they have with a trained RPN, whatever the weights are.
    """
    heads = cfg.MODEL.ROI_HEADS
    wanted = int(heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION)

    def replace(rpn: nn.Module, inputs: tuple, output: tuple) -> tuple:
        proposals, losses = output
        if not rpn.training:
            return output
        _, _, truths = inputs  # images, features, objects
        pairs = zip(proposals, truths, strict=True)
        return [_with_objects(*pair, wanted) for pair in pairs], losses

    return replace


def _with_objects(proposals: Instances, truth: Instances, wanted: int) -> Instances:
    if len(truth) == 0:
        return proposals
    boxes = truth.gt_boxes.tensor
    objects = Instances(proposals.image_size)
    objects.proposal_boxes = Boxes(boxes[torch.arange(wanted, device=boxes.device) % len(boxes)])
    objects.objectness_logits = proposals.objectness_logits.new_zeros(wanted)
    return Instances.cat([proposals[: max(len(proposals) - wanted, 0)], objects])
