"""The picture beside an anchor file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2_cityscapes.files import write_atomically
from d2_cityscapes.modeling.anchors.clustering import (
    DEFAULT_RATIOS,
    DEFAULT_SIZES,
    Anchors,
    anchor_shapes,
    best_shape_iou,
)
from d2_cityscapes.png import figure_png

__all__ = ["plot_anchors"]

_MARKS = ("tab:orange", "x"), ("tab:blue", "o"), ("tab:green", "+")  # colour and marker


def plot_anchors(path: str | Path, shapes: np.ndarray, anchors: dict[str, Anchors]) -> None:
    """Write a PNG: the boxes with all anchors, and how well each set of them fits.

    Args:
        path: the file.
        shapes: (N, 2) widths and heights, network pixels.
        anchors: by name, at most two; Detectron2's default anchors are drawn beside them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=120, layout="constrained")
    boxes_axes, iou_axes = figure.subplots(1, 2)
    boxes_axes.scatter(*shapes[:20_000].T, s=2, alpha=0.25, color="0.6", label="training boxes")
    drawn = {"Detectron2 default": Anchors(DEFAULT_SIZES, (DEFAULT_RATIOS,)), **anchors}
    for (name, shown), (color, marker) in zip(drawn.items(), _MARKS, strict=False):
        placed = anchor_shapes(shown.sizes, shown.aspect_ratios)
        boxes_axes.scatter(*placed.T, s=30, color=color, marker=marker, label=name)
        best = best_shape_iou(shapes, placed)
        label = f"{name}: mean {best.mean():.3f}"
        iou_axes.hist(best, bins=np.linspace(0, 1, 51), color=color, alpha=0.55, label=label)
    boxes_axes.set(
        xscale="log", yscale="log", xlabel="width [network px]", ylabel="height [network px]"
    )
    iou_axes.set(xlabel="IoU with the best anchor", ylabel="boxes")
    for axes in (boxes_axes, iou_axes):
        axes.legend(loc="upper left")
    write_atomically(path, [figure_png(figure)])
