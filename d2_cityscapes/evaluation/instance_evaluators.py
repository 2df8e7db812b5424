"""Scoring of boxes and masks.

Shape letters: H, W pixels of the annotated image.
"""

from __future__ import annotations

from d2_cityscapes.data.shards import open_shard
from d2_cityscapes.evaluation.coco import CocoImage, coco_scores, predicted_objects, true_objects
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator

__all__ = ["InstanceEvaluator"]


class InstanceEvaluator(ShardEvaluator):
    """Tasks "bbox" and "segm" of ``output["instances"]``, by the COCO protocol."""

    def reset(self) -> None:
        self._images: dict[str, CocoImage] = {}

    def _add(self, image: dict, output: dict) -> None:
        reader, index = open_shard(image["shard"], self.table), image["index"]
        with_masks = "segm" in self.tasks
        found = output["instances"].to("cpu")
        self._images[image["image_id"]] = CocoImage(
            size=reader.image_size(index),
            truth=true_objects(
                reader.table(index),
                reader.instance_ids(index).numpy() if with_masks else None,
                self.table,
            ),
            predictions=predicted_objects(
                found.pred_boxes.tensor.numpy(),
                found.pred_classes.numpy(),
                found.scores.numpy(),
                found.pred_masks.numpy() if with_masks else None,
            ),
        )

    def _state(self) -> dict[str, CocoImage]:
        return self._images

    def _score(self, states: list[dict[str, CocoImage]]) -> list[ResultRow]:
        images = {name: image for part in states for name, image in part.items()}
        rows = []
        for task in self.tasks:
            scores = coco_scores(images, task, self.table)
            rows += make_rows(
                task, scores, protocol="COCO", dataset=self.dataset_name, images=len(images)
            )
        return rows
