"""Regions pooled level by level where the host knows how many there are on each."""

from __future__ import annotations

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor

from d2_cityscapes.modeling.execution.wait_free.counted import CountedBoxes, level_rule

__all__ = ["WaitFreePooler"]


class WaitFreePooler(ROIPooler):
    """`ROIPooler` that does not wait for boxes that are counted (`CountedBoxes`).

    The same features, bit for bit.
    """

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """See `ROIPooler`."""
        counts = self._counts(box_lists)
        if counts is None:
            return super().forward(x, box_lists)
        rois = torch.cat(
            [
                torch.cat([boxes.tensor.new_full((len(boxes), 1), image), boxes.tensor], dim=1)
                for image, boxes in enumerate(box_lists)
            ]
        )
        if len(self.level_poolers) == 1:
            return self.level_poolers[0](x[0], rois)
        levels = torch.cat([boxes.levels for boxes in box_lists])
        output = x[0].new_zeros((len(rois), x[0].shape[1], *self.output_size))
        by_level = levels.argsort(stable=True).split(counts)
        for pooler, features, rows in zip(self.level_poolers, x, by_level, strict=True):
            output.index_put_((rows,), pooler(features, rois[rows]))
        return output

    def _counts(self, box_lists: list[Boxes]) -> list[int] | None:
        """How many boxes of the batch are on each level; None where nobody knows."""
        if not box_lists or not all(isinstance(boxes, CountedBoxes) for boxes in box_lists):
            return None
        first = box_lists[0]
        if any(
            boxes.batch is not first.batch or boxes.is_foreground != first.is_foreground
            for boxes in box_lists
        ):
            return None
        counts = list(first.on_level)
        known = first.batch.rule == level_rule(self)
        return counts if known and sum(counts) == sum(map(len, box_lists)) else None
