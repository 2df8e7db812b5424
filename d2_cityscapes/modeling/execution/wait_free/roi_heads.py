"""ROI heads: the samples of a whole batch drawn on the device, and one answer about them.

Shape letters: N images, P proposals of one image (filled up to the most of any), G objects of it,
S slots for samples.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.modeling.box_head import GIoUROIHeads
from d2_cityscapes.modeling.execution.wait_free.counted import (
    BatchNumbers,
    CountedBoxes,
    foreground_numbers,
    level_rule,
    select_foreground,
)
from d2_cityscapes.modeling.execution.wait_free.matching import match_boxes
from d2_cityscapes.modeling.execution.wait_free.sampling import draw_sample
from d2_cityscapes.modeling.execution.wait_free.where import is_queued
from d2_cityscapes.modeling.panoptic.instance_heads import SeamlessROIHeads

__all__ = ["WaitFreeGIoUROIHeads", "WaitFreeROIHeads", "WaitFreeSeamlessROIHeads"]


class WaitFreeROIHeads(StandardROIHeads):
    """`StandardROIHeads` that waits once in a step: for the numbers of its samples.

    On a GPU the samples are other ones than Detectron2 would draw from the same seed, but as
    likely. On the CPU it is `StandardROIHeads`, bit for bit.
    """

    @torch.no_grad()
    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """See `ROIHeads`. On a GPU the boxes are counted."""
        if not proposals or not is_queued(proposals[0].objectness_logits):
            return super().label_and_sample_proposals(proposals, targets)
        if self.proposal_append_gt:
            proposals = add_ground_truth_to_proposals(targets, proposals)
        labelled = [self._label(p, t) for p, t in zip(proposals, targets, strict=True)]
        matches = [match for match, _ in labelled]
        classes = _filled_up([own[:, None] for _, own in labelled], -1)[:, :, 0]
        background = classes == self.num_classes
        sample = draw_sample(
            (classes != -1) & ~background,
            background,
            self.batch_size_per_image,
            self.positive_fraction,
        )
        slots, counts = sample.indices, sample.counts
        boxes = _filled_up([p.proposal_boxes.tensor for p in proposals], 0)
        boxes = boxes.gather(1, slots[:, :, None].expand(-1, -1, 4))
        rule = level_rule(self.box_pooler)
        levels = assign_boxes_to_levels([Boxes(boxes.flatten(0, 1))], *rule).view_as(slots)

        first = sample.positive.shape[1]  # slots of the foreground
        numbers = torch.cat(
            [
                sample.num_positive,
                sample.num_negative,
                _on_levels(levels, counts, rule),
                _on_levels(levels[:, :first], sample.positive_counts, rule),
            ]
        ).tolist()  # the one wait
        images = len(proposals)
        num_positive, num_negative = numbers[:images], numbers[images : 2 * images]
        on_level = numbers[2 * images :]
        half = len(on_level) // 2
        batch = BatchNumbers(rule, tuple(on_level[:half]), tuple(on_level[half:]))
        sampled = []
        for i, (own, target) in enumerate(zip(proposals, targets, strict=True)):
            chosen = _chosen(first, num_positive[i], num_negative[i], slots.device)
            index = slots[i, chosen]
            part = own[index]
            part.proposal_boxes = CountedBoxes(
                part.proposal_boxes.tensor,
                levels=levels[i, chosen],
                num_foreground=num_positive[i],
                batch=batch,
            )
            part.gt_classes = classes[i, index]
            if len(target):
                match = matches[i][index]
                for name, value in target.get_fields().items():
                    if name.startswith("gt_") and not part.has(name):
                        part.set(name, value[match])
            sampled.append(part)
        storage = get_event_storage()
        storage.put_scalar("roi_head/num_fg_samples", np.mean(num_positive))
        storage.put_scalar("roi_head/num_bg_samples", np.mean(num_negative))
        return sampled

    def _label(self, proposals: Instances, targets: Instances) -> tuple[Tensor, Tensor]:
        """(P,) int64 matched objects, and (P,) int64 classes: K is background, -1 ignored."""
        matches, labels = match_boxes(
            targets.gt_boxes.tensor, proposals.proposal_boxes.tensor, self.proposal_matcher
        )
        if not len(targets):
            return matches, torch.full_like(matches, self.num_classes)
        classes = targets.gt_classes[matches]
        classes = classes.masked_fill(labels == 0, self.num_classes)
        return matches, classes.masked_fill(labels == -1, -1)

    def _forward_mask(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> dict[str, Tensor] | list[Instances]:
        if not (self.mask_on and self.training) or foreground_numbers(instances) is None:
            return super()._forward_mask(features, instances)
        instances, _ = select_foreground(instances, self.num_classes)
        inputs = {name: features[name] for name in self.mask_in_features}
        if self.mask_pooler is None:
            return self.mask_head(inputs, instances)
        boxes = [image.proposal_boxes for image in instances]
        return self.mask_head(self.mask_pooler(list(inputs.values()), boxes), instances)


class WaitFreeGIoUROIHeads(GIoUROIHeads, WaitFreeROIHeads):
    """`GIoUROIHeads`, likewise."""


class WaitFreeSeamlessROIHeads(SeamlessROIHeads, WaitFreeGIoUROIHeads):
    """`SeamlessROIHeads`, likewise."""


def _filled_up(rows: list[Tensor], value: int) -> Tensor:
    """(N, P, C): the rows of each image, (., C), and behind them rows of a value."""
    most = max(map(len, rows))
    return torch.stack([F.pad(own, (0, 0, 0, most - len(own)), value=value) for own in rows])


def _on_levels(levels: Tensor, counts: Tensor, rule: tuple[int, int, int, int]) -> Tensor:
    """How many of the slots that count are on each level."""
    lowest, highest, *_ = rule
    every = torch.arange(highest - lowest + 1, device=levels.device)
    return ((levels[..., None] == every) & counts[..., None]).sum(dim=(0, 1))


def _chosen(first: int, num_positive: int, num_negative: int, device: torch.device) -> Tensor:
    """The slots of an image that count: among the `first` ones, and among the others."""
    return torch.cat(
        [
            torch.arange(num_positive, device=device),
            torch.arange(first, first + num_negative, device=device),
        ]
    )
