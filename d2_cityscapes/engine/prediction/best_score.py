"""The best score that a model has given to any object, whether or not it was kept."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from torch import Tensor, nn

__all__ = ["BestScore"]


class BestScore:
    """A running maximum, of what is shown to it and of what the heads of the boxes say.

    Attributes:
        value: 0 to 1; None before any.
    """

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: any. Where it classifies boxes as Detectron2's R-CNN does, scores below
                MODEL.ROI_HEADS.SCORE_THRESH_TEST are seen too.
        """
        self._best: Tensor | None = None
        for module in model.modules():
            if isinstance(module, FastRCNNOutputLayers):
                module.register_forward_hook(self._of_boxes)

    @property
    def value(self) -> float | None:
        return None if self._best is None else float(self._best)

    def see(self, scores: Tensor) -> None:
        """Take in scores of any shape, on any device; nothing waits for it."""
        if scores.numel():
            best = scores.detach().max()
            self._best = best if self._best is None else torch.maximum(self._best, best)

    def _of_boxes(self, module: nn.Module, _: Any, output: Any) -> None:
        logits = output[0].detach().float()  # (N, C + 1), the last of "no object"
        sigmoid = getattr(module, "use_sigmoid_ce", False)
        self.see((logits.sigmoid() if sigmoid else logits.softmax(dim=-1))[..., :-1])
