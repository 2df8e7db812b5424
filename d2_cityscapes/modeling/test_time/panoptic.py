"""Panoptics of a picture seen in several sizes, and mirrored."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from torch import nn

from d2_cityscapes.layers.best_classes import best_classes
from d2_cityscapes.modeling.panoptic.seamless import SeamlessPanoptic
from d2_cityscapes.modeling.test_time.instances import InstanceViews
from d2_cityscapes.modeling.test_time.semantic import SemanticViews

__all__ = ["PanopticViews"]


class PanopticViews(nn.Module):
    """`SeamlessPanoptic` whose instances are those of `InstanceViews`, fused with mean semantics.

    Each part is averaged before anything is fused; the rules of fusion are the model's.
    """

    def __init__(self, cfg: CfgNode, model: SeamlessPanoptic, views: DatasetMapperTTA) -> None:
        """
        Args:
            cfg: of the model.
            model: not data-parallel.
            views: from an input to those of its views.
        """
        super().__init__()
        self.model = model
        self._instances = InstanceViews(cfg, model, views)
        self._semantics = SemanticViews(model, views, scores=model.semantic_scores)
        self.train(model.training)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As `SeamlessPanoptic.inference`, with mean probabilities as semantic scores."""
        return [self._of_one(inputs) for inputs in batched_inputs]

    def _of_one(self, inputs: dict[str, Any]) -> dict[str, Any]:
        scores = self._semantics.mean(inputs)
        sem_seg = scores if self.model.sem_seg_scores else best_classes(scores)
        del scores
        found = self._instances([inputs])[0]["instances"]
        return self.model.combined(sem_seg, found)
