"""Scoring of semantics.

Shape letters: H, W pixels of the annotated image; C classes.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.evaluation.panoptic.instance_ids import train_ids_of_sem_seg
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.evaluation.semantic.scores import SemSegQuality
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, naming_image, true_ids

__all__ = ["SemSegEvaluator"]


class SemSegEvaluator(ShardEvaluator):
    """Task "sem_seg" of ``output["sem_seg"]``, on any device.

    Either (C, H, W) scores, or an (H, W) map of train ids with 255 for void.
    """

    def _part(self, image: dict, output: dict) -> np.ndarray:
        quality = SemSegQuality(self.table)
        with naming_image(image, "sem_seg"):
            predicted = train_ids_of_sem_seg(output["sem_seg"], self.table)
            quality.update(predicted, true_ids(image, self.table))
        return quality.state()

    def _score(self, images: dict[str, np.ndarray]) -> list[ResultRow]:
        total = SemSegQuality(self.table)
        for state in images.values():
            total.merge(state)
        quality = total.compute()
        means: dict[str, tuple[float | None, int]] = {}
        members: dict[str, tuple[float | None, int]] = {}
        for suffix, group in (("", quality["per_class"]), ("_category", quality["per_category"])):
            for metric, mean in (("IoU", "mIoU"), ("iIoU", "iIoU")):
                own = {name: s[metric] for name, s in group.items() if metric in s}
                seen = sum(value is not None for value in own.values())
                means[mean + suffix] = (quality[mean + suffix], seen)
                members |= {
                    f"{metric}{suffix}-{name}": (value, int(value is not None))
                    for name, value in own.items()
                }
        return make_rows(
            "sem_seg",
            means | members,
            protocol="Cityscapes",
            dataset=self.dataset_name,
            images=len(images),
        )
