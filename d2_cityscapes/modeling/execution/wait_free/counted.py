"""Proposals whose numbers the host knows, so that nothing behind the samplers has to ask again.

The numbers travel with the boxes. Whatever makes other boxes out of them loses the numbers, and
whoever needs them then asks, as Detectron2 does.

Shape letter: R boxes of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor

__all__ = ["BatchNumbers", "CountedBoxes", "foreground_numbers", "level_rule", "select_foreground"]


def level_rule(pooler: ROIPooler) -> tuple[int, int, int, int]:
    """By what a pooler chooses the level of a box: arguments of `assign_boxes_to_levels`."""
    return (
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )


@dataclass(frozen=True, eq=False)
class BatchNumbers:
    """Of all boxes of a batch.

    Attributes:
        rule: see `level_rule`.
        on_level: how many are on each level, and how many of the foreground are.
    """

    rule: tuple[int, int, int, int]
    on_level: tuple[int, ...]
    foreground_on_level: tuple[int, ...]


class CountedBoxes(Boxes):
    """Boxes of one image, the foreground first.

    Attributes:
        levels: (R,) int64, the level of each.
        num_foreground: how many are foreground.
        batch: the numbers of all boxes of the batch that they are part of.
        is_foreground: whether these, and the others of the batch, are the foreground alone.
    """

    def __init__(
        self,
        tensor: Tensor,
        *,
        levels: Tensor,
        num_foreground: int,
        batch: BatchNumbers,
        is_foreground: bool = False,
    ) -> None:
        super().__init__(tensor)
        self.levels = levels
        self.num_foreground = num_foreground
        self.batch = batch
        self.is_foreground = is_foreground

    def __getitem__(self, item: int | slice | Tensor) -> Boxes:
        """Some of them, not counted any more."""
        return Boxes(self.tensor)[item]

    @classmethod
    def cat(cls, boxes_list: list[Boxes]) -> Boxes:
        """All of them, not counted any more."""
        return Boxes.cat(boxes_list)

    @property
    def on_level(self) -> tuple[int, ...]:
        """How many of these boxes of the whole batch are on each level."""
        return self.batch.foreground_on_level if self.is_foreground else self.batch.on_level

    def foreground(self) -> CountedBoxes:
        """The foreground alone."""
        first = self.num_foreground
        return CountedBoxes(
            self.tensor[:first],
            levels=self.levels[:first],
            num_foreground=first,
            batch=self.batch,
            is_foreground=True,
        )


def foreground_numbers(proposals: Sequence[Instances]) -> list[int] | None:
    """How many proposals of each image, its first, are foreground; None where nobody knows."""
    boxes = [image.proposal_boxes for image in proposals]
    if not boxes or not all(isinstance(own, CountedBoxes) for own in boxes):
        return None
    return [own.num_foreground for own in boxes]


def select_foreground(
    proposals: list[Instances], background: int
) -> tuple[list[Instances], Tensor]:
    """Detectron2's `select_foreground_proposals`, without a wait where the numbers are known.

    Args:
        proposals: with "gt_classes" and "proposal_boxes".
        background: its class.

    Returns:
        The foreground of each image, and which of all proposals it is, in order: int64 indices or
        a bool for each.
    """
    numbers = foreground_numbers(proposals)
    if numbers is None:
        found, chosen = select_foreground_proposals(proposals, background)
        return found, torch.cat(chosen)
    found, rows, start = [], [], 0
    for image, number in zip(proposals, numbers, strict=True):
        part = image[:number]
        part.proposal_boxes = image.proposal_boxes.foreground()
        found.append(part)
        rows.append(torch.arange(start, start + number, device=part.gt_classes.device))
        start += len(image)
    return found, torch.cat(rows)
