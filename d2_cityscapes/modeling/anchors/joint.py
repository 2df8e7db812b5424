"""Anchors by clustering boxes under the distance 1 - IoU, sizes and ratios together.

Shapes and anchors as in `anchor_clustering`: N boxes, S sizes (levels), R ratios of a level.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.modeling.anchors.clustering import (
    Anchors,
    anchor_quality,
    anchor_shapes,
    best_anchors,
    best_shape_iou,
    rounded_anchors,
)

__all__ = ["fit_jointly"]

# Sizes and ratios are multiplied by exp(+-step), with each of these steps in turn; the next one
# follows when a round adds less than the gain to the mean best IoU. The first are so large that a
# ratio which no box is near can find some.
_STEPS = (1.6, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125, 0.00625)
_GAIN = 1e-5


def fit_jointly(shapes: np.ndarray, start: Anchors) -> Anchors:
    """Clusters of boxes under the distance 1 - IoU: one size and R ratios for each level.

    Lloyd's two steps in turn: every box goes to the level of its best anchor, then the size and the
    ratios of each level move by a step to where the IoU of its boxes is greater, if there is such a
    place. Both raise the mean best IoU, so the result is never worse than the start. Deterministic.

    Args:
        shapes: (N, 2) widths and heights, positive, network pixels.
        start: anchors to begin with, e.g. of `cluster_shapes`.
    """
    shapes = np.asarray(shapes, dtype=np.float64)
    ratios = np.broadcast_to(start.aspect_ratios, (len(start.sizes), len(start.aspect_ratios[0])))
    table = np.column_stack([start.sizes, ratios])  # (S, 1 + R): size and ratios of each level
    levels, fit = _best_levels(shapes, table)
    for step in _STEPS:
        gain = np.inf
        while gain > _GAIN:
            table = _moved(shapes, levels, table, step)
            before = fit
            levels, fit = _best_levels(shapes, table)
            gain = fit - before
    table = table[np.argsort(table[:, 0])]
    found = rounded_anchors(table[:, 0], np.sort(table[:, 1:], axis=1))
    fits = [anchor_quality(shapes, a.sizes, a.aspect_ratios).mean_best_iou for a in (found, start)]
    return found if fits[0] > fits[1] else start  # rounding may have cost a small gain


def _best_levels(shapes: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, float]:
    """(N,) the level of each shape's best anchor, and the mean IoU with it."""
    anchors, iou = best_anchors(shapes, anchor_shapes(table[:, 0], table[:, 1:]))
    return anchors // (table.shape[1] - 1), float(iou.mean())


def _moved(shapes: np.ndarray, levels: np.ndarray, table: np.ndarray, step: float) -> np.ndarray:
    """A table whose every level fits the shapes assigned to it at least as well."""
    groups = [shapes[levels == level] for level in range(len(table))]
    table, fit = table.copy(), _level_fit(groups, table)
    for column in range(table.shape[1]):
        for factor in (np.exp(step), np.exp(-step)):
            trial = table.copy()
            trial[:, column] *= factor
            trial_fit = _level_fit(groups, trial)
            better = trial_fit > fit
            table[better], fit[better] = trial[better], trial_fit[better]
    return table


def _level_fit(groups: list[np.ndarray], table: np.ndarray) -> np.ndarray:
    """(S,) sum over the shapes of each level of the IoU with the best of its anchors."""
    anchors = anchor_shapes(table[:, 0], table[:, 1:]).reshape(len(table), -1, 2)
    return np.array([best_shape_iou(*pair).sum() for pair in zip(groups, anchors, strict=True)])
