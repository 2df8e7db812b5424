"""Scoring of panoptics.

Shape letters: H, W pixels of the annotated image; C classes.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.evaluation.panoptic.report import panoptic_rows
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, naming_image, true_ids

__all__ = ["PanopticEvaluator"]


class PanopticEvaluator(ShardEvaluator):
    """Task "panoptic_seg" of ``output["panoptic_seg"]``: (H, W) segment ids and their info dicts.

    Category ids are train ids, for things and stuff alike.
    """

    def _part(self, image: dict, output: dict) -> np.ndarray:
        quality = PanopticQuality(self.table)
        panoptic, segments_info = output["panoptic_seg"]
        with naming_image(image, "panoptic_seg"):
            predicted = ids_of_panoptic(panoptic, segments_info, self.table)
            quality.update(predicted, true_ids(image, self.table))
        return quality.state()

    def _score(self, images: dict[str, np.ndarray]) -> list[ResultRow]:
        total = PanopticQuality(self.table)
        for state in images.values():
            total.merge(state)
        return panoptic_rows(total, dataset=self.dataset_name, images=len(images))
