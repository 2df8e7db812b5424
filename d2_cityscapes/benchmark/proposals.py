"""The proposals of one model for another one: rounding would put nearly equal scores in order anew.

The samples of the RoI heads, and so their losses, are then comparable between devices and
precisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn

from d2_cityscapes.engine.proposed_objects import objects_proposed

__all__ = ["ProposalTap", "Proposals"]

Proposals = list[Instances]  # of the images of a batch, on the CPU


class ProposalTap:
    """Behind the RPN of a model, with boxes of objects among its proposals, see `objects_proposed`.

    A model without RPN has no proposals to keep or replace.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._device = cfg.MODEL.DEVICE
        self._kept: list[Proposals] | None = None
        self._given: Sequence[Proposals] = ()
        rpn = getattr(model, "proposal_generator", None)
        if isinstance(rpn, nn.Module):
            rpn.register_forward_hook(objects_proposed(cfg))
            rpn.register_forward_hook(self._pass)

    @contextmanager
    def keep(self) -> Iterator[list[Proposals]]:
        """Yields a list that gets the proposals of each batch in the block."""
        kept: list[Proposals] = []
        self._kept = kept
        try:
            yield kept
        finally:
            self._kept = None

    @contextmanager
    def give(self, proposals: Sequence[Proposals]) -> Iterator[None]:
        """Put the first of these in the place of all proposals in the block; without any, none."""
        self._given = proposals
        try:
            yield
        finally:
            self._given = ()

    def _pass(self, rpn: nn.Module, inputs: tuple, output: tuple) -> tuple:
        proposals, losses = output
        if self._kept is not None:
            self._kept.append([x.to("cpu") for x in proposals])
        if self._given:
            proposals = [x.to(self._device) for x in self._given[0]]
        return proposals, losses
