"""Scoring of boxes and masks.

Every image is matched with its truth when it comes; only small tables of that are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances

from d2_cityscapes.evaluation.detections import Detections, detections_of
from d2_cityscapes.evaluation.instances.cityscapes import (
    PROTOCOL,
    CityscapesMatches,
    cityscapes_scores,
    match_masks,
)
from d2_cityscapes.evaluation.instances.coco import coco_scores
from d2_cityscapes.evaluation.instances.coco_matching import (
    CocoMatches,
    match_objects,
    predicted_objects,
    true_objects,
)
from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, naming_image
from d2_cityscapes.shards.reader import ShardReader, open_shard

__all__ = ["CityscapesInstanceEvaluator", "InstanceEvaluator"]


class _MatchingEvaluator(ShardEvaluator):
    """Base: keeps what `_match` makes of ``output["instances"]`` for each image."""

    def _part(self, image: dict, output: dict) -> Any:
        reader, index = open_shard(image["shard"], self.table), image["index"]
        found: Instances = output["instances"].to("cpu")
        with naming_image(image, "instances"):
            detections = detections_of(found, self.table)
        if tuple(found.image_size) != reader.image_size(index):
            raise InvalidMapError(
                f"prediction of size {tuple(found.image_size)} for {image['image_id']}, whose "
                f"annotation is {reader.image_size(index)}: resize it to the annotated image"
            )
        return self._match(found, detections, reader, index)

    def _match(
        self, found: Instances, detections: Detections, reader: ShardReader, index: int
    ) -> Any:
        raise NotImplementedError


class InstanceEvaluator(_MatchingEvaluator):
    """Tasks "bbox" and "segm", by the COCO protocol."""

    def _match(
        self, found: Instances, detections: Detections, reader: ShardReader, index: int
    ) -> dict[str, CocoMatches]:
        masks = ids = None
        if "segm" in self.tasks:
            masks, ids = _masks(found), reader.instance_ids(index).numpy()
        truth = true_objects(reader.table(index), ids, self.table)
        predictions = predicted_objects(*detections, masks)
        return {task: match_objects(truth, predictions, task, self.table) for task in self.tasks}

    def _score(self, images: dict[str, dict[str, CocoMatches]]) -> list[ResultRow]:
        rows = []
        for task in self.tasks:
            matches = {name: image[task] for name, image in images.items()}
            for protocol, scores in coco_scores(matches, task, self.table).items():
                rows += make_rows(
                    task, scores, protocol=protocol, dataset=self.dataset_name, images=len(images)
                )
        return rows


class CityscapesInstanceEvaluator(_MatchingEvaluator):
    """Task "segm_cityscapes": masks by the rules of the Cityscapes benchmark."""

    def _match(
        self, found: Instances, detections: Detections, reader: ShardReader, index: int
    ) -> CityscapesMatches:
        return match_masks(
            _masks(found),
            detections.thing_ids,
            detections.scores,
            reader.instance_ids(index).numpy(),
            reader.table(index),
            self.table,
        )

    def _score(self, images: dict[str, CityscapesMatches]) -> list[ResultRow]:
        (task,) = self.tasks
        return make_rows(
            task,
            cityscapes_scores(images, self.table),
            protocol=PROTOCOL,
            dataset=self.dataset_name,
            images=len(images),
        )


def _masks(found: Instances) -> np.ndarray:
    """(N, H, W) bool masks of detections."""
    return found.pred_masks.to(torch.bool).numpy()
