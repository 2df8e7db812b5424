"""The RPN: anchors matched in bounded memory, sampled into fixed slots, proposals of a whole batch.

Shape letters: N images, A anchors of all levels of an image, P slots for sampled positives, Q for
negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.modeling.execution.deferred_scalars import put_scalar_later
from d2_cityscapes.modeling.execution.wait_free.matching import match_boxes
from d2_cityscapes.modeling.execution.wait_free.proposals import top_proposals
from d2_cityscapes.modeling.execution.wait_free.regression import box_deltas
from d2_cityscapes.modeling.execution.wait_free.sampling import Sample, draw_sample
from d2_cityscapes.modeling.execution.wait_free.where import is_queued

__all__ = ["WaitFreeRPN"]


@dataclass(frozen=True)
class _Targets:
    """What the losses of a batch are computed of.

    Attributes:
        sample: the anchors.
        boxes: (N, P, 4) float32, the object of each positive.
    """

    sample: Sample
    boxes: Tensor


class WaitFreeRPN(RPN):
    """`RPN`, with smooth L1 as its box loss, that waits for its proposals only.

    On a GPU the samples are other ones than Detectron2 would draw from the same seed, but as
    likely; the losses are summed in another order. On the CPU it is `RPN`, bit for bit.
    """

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor] | _Targets, list[Tensor]]:
        """See `RPN`. On a GPU: the targets, and nothing."""
        every = Boxes.cat(anchors)
        labels, matches = [], []
        for image in gt_instances:
            found, label = match_boxes(image.gt_boxes.tensor, every.tensor, self.anchor_matcher)
            if self.anchor_boundary_thresh >= 0:
                inside = every.inside_box(image.image_size, self.anchor_boundary_thresh)
                label.masked_fill_(~inside, -1)
            matches.append(found)
            labels.append(label)
        objects = [image.gt_boxes.tensor for image in gt_instances]
        if not is_queued(every.tensor):
            labels = [self._subsample_labels(label) for label in labels]
            matched = zip(objects, matches, strict=True)
            return labels, [
                boxes[match] if len(boxes) else torch.zeros_like(every.tensor)
                for boxes, match in matched
            ]
        label = torch.stack(labels)
        sample = draw_sample(
            label == 1, label == 0, self.batch_size_per_image, self.positive_fraction
        )
        boxes = [
            boxes[match[slots]] if len(boxes) else every.tensor[slots]
            for boxes, match, slots in zip(objects, matches, sample.positive, strict=True)
        ]
        return _Targets(sample, torch.stack(boxes)), []

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor] | _Targets,
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """See `RPN`; `gt_labels` and `gt_boxes` are what `label_and_sample_anchors` gave."""
        if not isinstance(gt_labels, _Targets):
            return super().losses(
                anchors, pred_objectness_logits, gt_labels, pred_anchor_deltas, gt_boxes
            )
        sample, boxes = gt_labels.sample, gt_labels.boxes
        images = len(boxes)
        for name, number in (("pos", sample.num_positive), ("neg", sample.num_negative)):
            put_scalar_later(f"rpn/num_{name}_anchors", number.sum() / images)

        counts = sample.counts
        logits = torch.cat(pred_objectness_logits, dim=1).gather(1, sample.indices).float()
        slots = sample.positive.shape[1]
        truth = torch.zeros_like(logits)
        truth[:, :slots] = 1
        # What does not count is 0 before the loss: not even a nan there reaches a gradient.
        objectness_loss = F.binary_cross_entropy_with_logits(
            torch.where(counts, logits, 0), truth, weight=counts.float(), reduction="sum"
        )

        chosen = sample.positive[:, :, None].expand(-1, -1, 4)
        deltas = torch.cat(pred_anchor_deltas, dim=1).gather(1, chosen)
        places = Boxes.cat(anchors).tensor[sample.positive]
        wanted = box_deltas(self.box2box_transform, places, boxes)
        positive = sample.positive_counts[:, :, None]
        localization_loss = smooth_l1_loss(
            torch.where(positive, deltas, 0),
            torch.where(positive, wanted, 0),
            beta=self.smooth_l1_beta,
            reduction="sum",
        )
        normalizer = self.batch_size_per_image * images
        losses = {
            "loss_rpn_cls": objectness_loss / normalizer,
            "loss_rpn_loc": localization_loss / normalizer,
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """See `RPN`."""
        if not self.training or not is_queued(pred_objectness_logits[0]):
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        return top_proposals(
            anchors,
            pred_objectness_logits,
            pred_anchor_deltas,
            image_sizes,
            transform=self.box2box_transform,
            nms_thresh=self.nms_thresh,
            pre_nms_topk=self.pre_nms_topk[True],
            post_nms_topk=self.post_nms_topk[True],
            min_box_size=self.min_box_size,
        )
