"""The losses of Mask2Former: masks matched with segments, and compared at sampled points.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022,
section 3.3; the points are those of PointRend. EoMT is trained with the same.

Shape letters: N images; Q queries; C classes, and one more for "no object"; a, b cells of a mask;
S segments of an image; K pairs of a query and its segment, in all images; P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.modeling.universal.targets import Segments, coverage

__all__ = ["Prediction", "SetLoss"]


class Prediction(NamedTuple):
    """What one layer of a network predicts.

    Attributes:
        classes: (N, Q, C + 1) logits, the last of "no object".
        masks: (N, Q, a, b) logits.
    """

    classes: Tensor
    masks: Tensor


class SetLoss(NamedTuple):
    """The losses with their weights, in float32 whatever the network computes in.

    Attributes:
        class_weight: of the cross entropy of classes.
        mask_weight: of the binary cross entropy of masks.
        dice_weight: of their dice loss.
        no_object_weight: of queries without a segment in the cross entropy.
        num_points: P.
        oversample_ratio: candidates for each point.
        importance_sample_ratio: the part of the points that are the most uncertain candidates; the
            others lie anywhere.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Segments]
    ) -> dict[str, Tensor]:
        """ "loss_class", "loss_mask" and "loss_dice" of the last layer, "loss_aux" of the others.

        Each layer is matched by itself. Images without any segment train "no object" alone. Points
        are drawn for the last layer first, by PyTorch's generator of the device.

        Args:
            predictions: of all layers, the last one at the end.
            targets: of each image, with maps of the size of the padded batch.
        """
        with torch.autocast(predictions[-1].masks.device.type, enabled=False):
            pairs = self._num_pairs(targets)
            last, *others = (
                self._of_layer(own, targets, pairs) for own in _last_first(predictions)
            )
        names = ("loss_class", "loss_mask", "loss_dice")
        losses = dict(zip(names, last, strict=True))
        if others:
            losses["loss_aux"] = torch.stack([loss for own in others for loss in own]).sum()
        return losses

    def _num_pairs(self, targets: Sequence[Segments]) -> Tensor:
        """Segments in the batch of each process, on average, at least 1."""
        device = targets[0].classes.device
        number = torch.tensor(sum(len(x.classes) for x in targets), dtype=torch.float32).to(device)
        if comm.get_world_size() > 1:
            torch.distributed.all_reduce(number)
        return (number / comm.get_world_size()).clamp(min=1)

    def _of_layer(
        self, predicted: Prediction, targets: Sequence[Segments], pairs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        classes, masks = predicted.classes.float(), predicted.masks.float()
        matched = [
            self._match(own, mask, target)
            for own, mask, target in zip(classes.detach(), masks.detach(), targets, strict=True)
        ]
        wanted = torch.full(classes.shape[:2], classes.shape[2] - 1, device=classes.device)
        for row, (queries, segments), target in zip(wanted, matched, targets, strict=True):
            row[queries] = target.classes[segments]
        weights = classes.new_ones(classes.shape[2])
        weights[-1] = self.no_object_weight
        of_classes = F.cross_entropy(classes.transpose(1, 2), wanted, weights)

        own = torch.cat([mask[q] for mask, (q, _) in zip(masks, matched, strict=True)])
        if not len(own):
            nothing = masks.sum() * 0
            return self.class_weight * of_classes, nothing, nothing
        with torch.no_grad():
            points = self._uncertain_points(own)
            parts = points.split([len(q) for q, _ in matched])
            truth = torch.cat(
                [
                    coverage(target.map, segments, part)
                    for target, (_, segments), part in zip(targets, matched, parts, strict=True)
                ]
            )
        logits = _at_points(own, points)
        of_masks = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        inside = logits.sigmoid()
        dice = 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)
        return (
            self.class_weight * of_classes,
            self.mask_weight * of_masks.sum() / pairs,
            self.dice_weight * dice.sum() / pairs,
        )

    def _match(self, classes: Tensor, masks: Tensor, target: Segments) -> tuple[Tensor, Tensor]:
        """The queries, ascending, and the segment of each, that cost the least together.

        The costs are the losses, with 1 - p for the cross entropy of classes, at one set of points
        for all masks.
        """
        from scipy.optimize import linear_sum_assignment  # slow to import

        points = torch.rand(1, self.num_points, 2, device=masks.device)
        logits = _at_points(masks, points)  # (Q, P)
        every = torch.arange(len(target.classes), device=masks.device)
        truth = coverage(target.map, every, points)  # (S, P)
        on, off = F.softplus(-logits), F.softplus(logits)
        of_masks = (on @ truth.T + off @ (1 - truth).T) / self.num_points
        inside = logits.sigmoid()
        overlap, sizes = inside @ truth.T, inside.sum(1)[:, None] + truth.sum(1)
        costs = (
            self.mask_weight * of_masks
            - self.class_weight * classes.softmax(-1)[:, target.classes]
            + self.dice_weight * (1 - (2 * overlap + 1) / (sizes + 1))
        )
        # A loss that is not finite is found behind the step; here it would end in scipy's words.
        most = torch.finfo(costs.dtype).max
        costs = costs.nan_to_num(nan=most, posinf=most, neginf=most)
        queries, segments = linear_sum_assignment(costs.cpu().numpy())
        return (
            torch.from_numpy(queries).to(masks.device),
            torch.from_numpy(segments).to(masks.device),
        )

    def _uncertain_points(self, masks: Tensor) -> Tensor:
        """(K, P, 2) points of each mask, most of them where its logits are near 0."""
        number = len(masks)
        candidates = torch.rand(
            number, int(self.num_points * self.oversample_ratio), 2, device=masks.device
        )
        uncertain = int(self.importance_sample_ratio * self.num_points)
        doubt = -_at_points(masks, candidates).abs()
        best = doubt.topk(uncertain, dim=1)[1]
        chosen = candidates.gather(1, best[..., None].expand(-1, -1, 2))
        anywhere = torch.rand(number, self.num_points - uncertain, 2, device=masks.device)
        return torch.cat([chosen, anywhere], dim=1)


def _last_first(predictions: Sequence[Prediction]) -> list[Prediction]:
    return [predictions[-1], *predictions[:-1]]


def _at_points(masks: Tensor, points: Tensor) -> Tensor:
    """(K, P) of masks (K, a, b), bilinear between the centres of cells, 0 outside.

    Args:
        masks: logits.
        points: (K, P, 2) or (1, P, 2) (x, y) in the unit square.
    """
    if len(points) == 1:  # the masks as channels of one map
        sampled = F.grid_sample(masks[None], 2 * points[:, :, None] - 1, align_corners=False)
        return sampled[0, :, :, 0]
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0, :, 0]
