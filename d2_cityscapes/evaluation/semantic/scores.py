"""Semantic segmentation scores of street scenes, from maps in memory.

The rules are those of cityscapesscripts' pixel-level evaluation:

* IoU of a class: true positive pixels / (true positive + false positive + false negative pixels).
  Void truth is left out. A *prediction* of void is a miss.
* iIoU of a thing class: each true instance counts as if it had the average size of its class, so
  that near objects do not outweigh far ones. With S the average size, n instances and r the part of
  an instance that the prediction hits, it is S * sum(r) / (S * n + false positive pixels). Pixels
  without an instance number (group regions) are neither hit nor missed.
* Both again over categories, where a confusion inside the category is a hit; iIoU for categories of
  things alone.

A class or category that neither the truth has nor the prediction claims is left out of the means.

Shape letters: H, W pixels; C classes; R runs of pixels with equal ids; N ids in the truth of one
image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2_cityscapes.evaluation.class_means import mean_of_seen
from d2_cityscapes.evaluation.panoptic.map_scores import (
    MapScore,
    check_instance_ids,
    check_train_ids,
    paired_runs,
)
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelTable

__all__ = ["BENCHMARKS", "Benchmark", "SemSegQuality"]


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark fixes beside its classes.

    Attributes:
        categories: names of the classes of each category.
        average_sizes: pixels of an average instance of each thing class, at full resolution.
    """

    categories: Mapping[str, tuple[str, ...]]
    average_sizes: Mapping[str, float]


# Name of the label table -> its benchmark. Without one there is no iIoU and no category.
BENCHMARKS = {
    "cityscapes": Benchmark(
        categories={
            "flat": ("road", "sidewalk"),
            "construction": ("building", "wall", "fence"),
            "object": ("pole", "traffic light", "traffic sign"),
            "nature": ("vegetation", "terrain"),
            "sky": ("sky",),
            "human": ("person", "rider"),
            "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
        },
        average_sizes={
            "person": 3462.4756337644,
            "rider": 3930.4788056518,
            "car": 12794.0202738185,
            "truck": 27855.1264367816,
            "bus": 35732.1511111111,
            "train": 67583.7075812274,
            "motorcycle": 6298.7200839748,
            "bicycle": 4672.3249222261,
        },
    ),
}


class SemSegQuality(MapScore):
    """IoU and iIoU of classes and categories, accumulated over images as sums.

    Args:
        table: classes of the dataset.
    """

    def __init__(self, table: LabelTable = CITYSCAPES) -> None:
        size = len(table.classes)
        # The state is (C, C + 4). Of a true class, in this order: pixels by predicted class, void
        # last; and over its instances, the sums of the parts that the class and its category hit,
        # and their number.
        super().__init__(table, np.zeros((size, size + 4)))
        benchmark = BENCHMARKS.get(table.name, Benchmark({}, {}))
        self._average_size = np.array(
            [benchmark.average_sizes.get(c.name, 0.0) for c in table.classes]
        )
        train_id = {c.name: c.train_id for c in table.classes}
        self._categories = {
            name: [train_id[member] for member in members]
            for name, members in benchmark.categories.items()
        }
        self._same_category = np.eye(size, dtype=bool)
        for members in self._categories.values():
            self._same_category[np.ix_(members, members)] = True
        # Column of the sums for a predicted train id; -1: no such id.
        self._column_of = np.full(VOID_TRAIN_ID + 1, -1)
        self._column_of[:size] = np.arange(size)
        self._column_of[VOID_TRAIN_ID] = size

    def update(self, pred_train_ids: Any, true_ids: Any) -> None:
        """Add one image.

        Args:
            pred_train_ids: (H, W) integer map of train ids, 255 = void; numpy or torch.
            true_ids: (H, W) integer map of instance ids, the truth; numpy or torch.

        Raises:
            InvalidMapError: a ValueError, where the shapes differ, or a map is not of integers or
                holds an id that the label table does not know.
        """
        pred, true, lengths = paired_runs(pred_train_ids, true_ids)
        check_train_ids(pred, self.table, "prediction")
        check_instance_ids(true, self.table, "truth")
        ids, counts = self._count(pred, true, lengths)
        classes = self.table.train_id_of[ids].astype(np.int64)
        evaluated = classes != VOID_TRAIN_ID
        width = counts.shape[1]
        np.add.at(self._sums[:, :width], classes[evaluated], counts[evaluated])

        instances = evaluated & (ids >= INSTANCE_DIVISOR)
        classes, counts = classes[instances], counts[instances]
        sizes = counts.sum(axis=1)
        hits = counts[np.arange(len(classes)), classes] / sizes
        category_hits = (counts[:, :-1] * self._same_category[classes]).sum(axis=1) / sizes
        columns = np.stack([hits, category_hits, np.ones_like(hits)], axis=1)
        np.add.at(self._sums[:, width:], classes, columns)

    def compute(self) -> dict[str, Any]:
        """The scores in percent; None where nothing was seen, which no mean counts.

        Returns:
            mIoU and iIoU, means over the classes; mIoU_category and iIoU_category, over the
            categories; per_class and per_category, from the name to its "IoU" and, where its things
            have an average size, "iIoU".
        """
        per_class = {c.name: self._scores([c.train_id]) for c in self.table.classes}
        per_category = {
            name: self._scores(members, category=True) for name, members in self._categories.items()
        }
        return {
            "mIoU": _mean(per_class, "IoU"),
            "iIoU": _mean(per_class, "iIoU"),
            "mIoU_category": _mean(per_category, "IoU"),
            "iIoU_category": _mean(per_category, "iIoU"),
            "per_class": per_class,
            "per_category": per_category,
        }

    def _count(
        self, pred: np.ndarray, true: np.ndarray, lengths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The (N,) ids of a truth, and the (N, C + 1) pixels of each by predicted class.

        From the values and lengths (R,) of the runs.
        """
        seen = np.zeros(len(self.table.known_ids), dtype=bool)
        seen[true] = True
        rank = np.cumsum(seen) - 1
        ids = np.flatnonzero(seen)
        width = len(self.table.classes) + 1
        joint = rank[true] * width + self._column_of[pred]
        return ids, np.bincount(joint, lengths, len(ids) * width).reshape(-1, width)

    def _scores(self, members: list[int], *, category: bool = False) -> dict[str, float | None]:
        """IoU and iIoU in percent of the class, or of the category of the classes, `members`."""
        confusion = self._sums[:, : len(self._sums) + 1]
        hits = confusion[np.ix_(members, members)].sum()
        truth = confusion[members].sum()
        wrong = confusion[:, members].sum() - hits
        pixels = truth + wrong

        scores = {"IoU": float(100 * hits / pixels) if pixels else None}
        sizes = self._average_size[members]
        if sizes.all():
            parts, category_parts, number = self._sums[members, -3:].T
            weighted_hits = (sizes * (category_parts if category else parts)).sum()
            weighted = (sizes * number).sum() + wrong
            scores["iIoU"] = float(100 * weighted_hits / weighted) if weighted else None
        return scores


def _mean(group: Mapping[str, Mapping[str, float | None]], metric: str) -> float | None:
    return mean_of_seen(scores.get(metric) for scores in group.values())
