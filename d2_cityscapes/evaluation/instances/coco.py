"""The COCO protocol on street scenes: AP and AR of images that `coco_matching` has matched.

The numbers are those of pycocotools. Sizes are small below 32², large above 96² pixels, and medium
between, both ends included. Two rules say which area that is:

* APs, APm and APl go by the area of the *box*, as in Table 5 of Attias & Oner's staged Mask R-CNN;
  in "segm" it is the box around the mask. Their protocol is `BOX_SIZE_PROTOCOL`.
* APs_mask, APm_mask and APl_mask, in "segm" only, go by the area of the *mask*, as COCO has it.
  Their protocol is `PROTOCOL`, as that of all metrics without a size.

Shape letters: D detections of one class; A area groups; T IoU thresholds; C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from d2_cityscapes.evaluation.class_means import mean_percent
from d2_cityscapes.evaluation.instances.coco_matching import (
    AREA_GROUPS,
    NUM_THRESHOLDS,
    CocoMatches,
)
from d2_cityscapes.labels import LabelTable

__all__ = ["BOX_SIZE_PROTOCOL", "PROTOCOL", "coco_scores"]

PROTOCOL = "COCO"
BOX_SIZE_PROTOCOL = "COCO, sizes by box"

_RECALLS = np.linspace(0, 1, 101)


def coco_scores(
    images: Mapping[str, CocoMatches], task: str, table: LabelTable
) -> dict[str, dict[str, tuple[float | None, int]]]:
    """AP and AR of one task over images.

    Args:
        images: image id -> its matches. The order does not matter.
        task: "bbox" or "segm", as the matches were made for.
        table: the classes.

    Returns:
        Protocol -> metric -> value in percent and the number of classes in its mean. Only classes
        with ground truth count; where none has any, the value is None.
    """
    groups = AREA_GROUPS[task]
    precision = np.full((len(groups), NUM_THRESHOLDS, len(table.things)), np.nan)
    recall = precision.copy()
    if images:
        _enter([images[image_id] for image_id in sorted(images)], precision, recall)
    sizes = {f"AP{group}": mean_percent(precision[a]) for a, group in enumerate(groups) if a > 0}
    by_box = {metric: sizes.pop(metric) for metric in ("APs", "APm", "APl")}
    general = {
        "AP": mean_percent(precision[0]),
        "AP50": mean_percent(precision[0, :1]),
        "AP75": mean_percent(precision[0, 5:6]),
        "AR@100": mean_percent(recall[0]),
    }
    per_class = {
        f"AP-{c.name}": mean_percent(precision[0, :, i : i + 1]) for i, c in enumerate(table.things)
    }
    return {PROTOCOL: general | sizes | per_class, BOX_SIZE_PROTOCOL: by_box}


def _enter(images: Sequence[CocoMatches], precision: np.ndarray, recall: np.ndarray) -> None:
    """Enter AP and the highest recall into (A, T, C) arrays, where there are objects to find."""
    thing_ids = np.concatenate([image.thing_ids for image in images])
    scores = np.concatenate([image.scores for image in images])
    matched = np.concatenate([image.matched for image in images], axis=-1)
    ignored = np.concatenate([image.ignored for image in images], axis=-1)
    true_counts = np.sum([image.true_counts for image in images], axis=0)
    for c in range(true_counts.shape[1]):
        own = np.flatnonzero(thing_ids == c)
        own = own[np.argsort(-scores[own], kind="stable")]
        for a in np.flatnonzero(true_counts[:, c]):
            found, counted = matched[a][:, own], ~ignored[a][:, own]
            precision[a, :, c], recall[a, :, c] = _average_precision(
                found & counted, ~found & counted, true_counts[a, c]
            )


def _average_precision(
    right: np.ndarray, wrong: np.ndarray, true_count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(T,) AP and (T,) highest recall of (T, D) bool detections, the best score first."""
    hits = np.cumsum(right, axis=1)
    recall = hits / true_count
    precision = hits / (np.cumsum(wrong, axis=1) + hits + np.spacing(1))
    # The best precision at a recall or above it, and 0 at one that is never reached.
    best = np.zeros((len(right), right.shape[1] + 1))
    best[:, :-1] = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    points = np.stack([np.searchsorted(row, _RECALLS) for row in recall])
    return np.take_along_axis(best, points, axis=1).mean(axis=1), recall.max(axis=1, initial=0)
