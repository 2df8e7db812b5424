"""Scoring of panoptics.

Shape letters: H, W pixels of the annotated image; C classes.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.evaluation.panoptic.report import panoptic_rows
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, each_once, true_ids

__all__ = ["PanopticEvaluator"]


class PanopticEvaluator(ShardEvaluator):
    """Task "panoptic_seg" of ``output["panoptic_seg"]``: (H, W) segment ids and their info dicts.

    Category ids are train ids, for things and stuff alike.
    """

    def reset(self) -> None:
        self._images: dict[str, np.ndarray] = {}  # image -> (6, C) state, a kilobyte

    def _add(self, image: dict, output: dict) -> None:
        quality = PanopticQuality(self.table)
        panoptic, segments_info = output["panoptic_seg"]
        try:
            predicted = ids_of_panoptic(panoptic.cpu().numpy(), segments_info, self.table)
            quality.update(predicted, true_ids(image, self.table))
        except InvalidMapError as error:
            raise InvalidMapError(f"{image['image_id']}: panoptic_seg: {error}") from error
        self._images[image["image_id"]] = quality.state()

    def _state(self) -> dict[str, np.ndarray]:
        return self._images

    def _score(self, states: list[dict[str, np.ndarray]]) -> list[ResultRow]:
        images = each_once(states)
        total = PanopticQuality(self.table)
        for state in images.values():
            total.merge(state)
        return panoptic_rows(total, dataset=self.dataset_name, images=len(images))
