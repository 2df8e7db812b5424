"""Semantic scores of a picture, averaged over the ways to look at it.

Shape letters: h, w pixels of the network's input; H, W pixels of the wanted output; C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from detectron2.modeling import DatasetMapperTTA
from fvcore.transforms.transform import HFlipTransform, TransformList
from torch import Tensor, nn

from d2_cityscapes.layers.best_classes import best_classes

__all__ = ["SemanticViews", "is_mirrored", "probabilities"]

Inputs = list[dict[str, Any]]


class SemanticViews(nn.Module):
    """A model of semantics that looks at a picture in several sizes, and mirrored (TEST.AUG).

    The probabilities of all views, brought to the wanted size, are averaged, as in
    mmsegmentation. One view at a time is looked at: three maps of scores are in memory at most.
    """

    def __init__(
        self,
        model: nn.Module,
        views: DatasetMapperTTA,
        *,
        scores: Callable[[Inputs], list[Tensor]] | None = None,
        normalize: Callable[[Tensor], Tensor] | None = None,
        labels: bool = False,
    ) -> None:
        """
        Args:
            model: from a list of inputs to one of {"sem_seg": (C, H, W) scores}.
            views: from an input to those of its views, each with its "transforms".
            scores: in place of calling the model, the scores alone.
            normalize: scores to what is averaged; None for `probabilities`.
            labels: whether the result is (H, W) uint8 classes instead.
        """
        super().__init__()
        self.model = model
        self._views = views
        self._scores = scores or self._of_model
        self._normalize = normalize or probabilities
        self._labels = labels
        self.train(model.training)

    def forward(self, batched_inputs: Inputs) -> list[dict[str, Tensor]]:
        """As the model, in eval mode.

        Args:
            batched_inputs: "image" (3, h, w) uint8, and "height" and "width" of the wanted output.

        Returns:
            For each image {"sem_seg": (C, H, W) mean, or (H, W) uint8 classes}.
        """
        means = map(self.mean, batched_inputs)
        return [{"sem_seg": best_classes(x) if self._labels else x} for x in means]

    @torch.no_grad()
    def mean(self, inputs: dict[str, Any]) -> Tensor:
        """(C, H, W) mean over the views of one input."""
        views = self._views(inputs)
        total: Tensor | None = None
        for view in views:
            mirrored = is_mirrored(view.pop("transforms"))
            own = self._normalize(self._scores([view])[0].float())
            own = own.flip(2) if mirrored else own
            total = own if total is None else total.add_(own)
        assert total is not None
        return total.div_(len(views))

    def _of_model(self, batched_inputs: Inputs) -> list[Tensor]:
        return [output["sem_seg"] for output in self.model(batched_inputs)]


def probabilities(logits: Tensor) -> Tensor:
    """Softmax over the classes of (C, H, W)."""
    return logits.softmax(dim=0)


def is_mirrored(transforms: TransformList) -> bool:
    """Whether a view with these transforms is a mirror image."""
    return any(isinstance(part, HFlipTransform) for part in transforms.transforms)
