"""Scoring of panoptics.

Shape letters: H, W pixels of the annotated image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2_cityscapes.evaluation.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.panoptic_quality import PanopticQuality
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, true_ids

__all__ = ["PanopticEvaluator"]


class PanopticEvaluator(ShardEvaluator):
    """Task "panoptic_seg" of ``output["panoptic_seg"]``: (H, W) segment ids and their info dicts.

    Category ids are train ids, for things and stuff alike.
    """

    def reset(self) -> None:
        self._quality = PanopticQuality(self.table)
        self._images = 0

    def _add(self, image: dict, output: dict) -> None:
        panoptic, segments_info = output["panoptic_seg"]
        predicted = ids_of_panoptic(panoptic.cpu().numpy(), segments_info, self.table)
        self._quality.update(predicted, true_ids(image, self.table))
        self._images += 1

    def _state(self) -> tuple[np.ndarray, int]:
        return self._quality.state(), self._images

    def _score(self, states: list[tuple[np.ndarray, int]]) -> list[ResultRow]:
        total = PanopticQuality(self.table)
        for state, _ in states:
            total.merge(state)
        quality = total.compute()
        per_class = quality.pop("per_class")

        def count(metric: str, classes: Sequence) -> int:
            return sum(per_class[c.name][metric] is not None for c in classes)

        groups = {"th": self.table.things, "st": self.table.stuff}
        by_panopticapi = {
            metric: (value, count("PQ", groups.get(metric[-2:], self.table.classes)))
            for metric, value in quality.items()
            if metric != "PQ_dagger"
        }
        by_panopticapi |= {
            f"PQ-{c.name}": (per_class[c.name]["PQ"], count("PQ", [c])) for c in self.table.classes
        }
        dagger = {"PQ_dagger": (quality["PQ_dagger"], count("PQ_dagger", self.table.classes))}
        rows = []
        for protocol, scores in (("panopticapi", by_panopticapi), ("Seamless", dagger)):
            rows += make_rows(
                "panoptic_seg",
                scores,
                protocol=protocol,
                dataset=self.dataset_name,
                images=sum(images for _, images in states),
            )
        return rows
