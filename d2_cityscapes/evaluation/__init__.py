"""Scores, results.json and the report."""

from d2_cityscapes.dependencies import lazy_exports
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality

__all__ = ["PanopticQuality", "build_evaluator"]

__getattr__ = lazy_exports(__name__, {"build_evaluator": "d2_cityscapes.evaluation.evaluators"})
