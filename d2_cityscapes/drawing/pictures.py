"""Pictures of predictions beside the truth, drawn while a model is evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from d2_cityscapes.data.register import has_truth
from d2_cityscapes.drawing.overlay import draw_instance_ids, side_by_side
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output, ids_of_train_ids
from d2_cityscapes.evaluation.shard_evaluator import naming_image
from d2_cityscapes.files import file_below
from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable
from d2_cityscapes.png import write_picture
from d2_cityscapes.shards.reader import open_shard

__all__ = ["PictureWriter"]


class PictureWriter(DatasetEvaluator):
    """Draws the first images of a dataset: image, prediction and, if there is one, truth in a row.

    It draws the richest form of what the model predicts (panoptic, else instances of a score of at
    least 0.5, else semantics) and the same of the truth. It returns no numbers.

    Args:
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        folder: receives <image_id>.png.
        number: how many images.
    """

    def __init__(self, dataset_name: str, folder: str | Path, number: int) -> None:
        self.table: LabelTable = MetadataCatalog.get(dataset_name).label_table
        self.folder = Path(folder)
        self._has_truth = has_truth(dataset_name)
        self._chosen = {d["image_id"] for d in DatasetCatalog.get(dataset_name)[:number]}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            if image["image_id"] in self._chosen:
                self._draw(image, output)

    def evaluate(self) -> dict:
        return {}

    def _draw(self, image: dict, output: dict) -> None:
        path = file_below(self.folder, f"{image['image_id']}.png")
        record = open_shard(image["shard"], self.table)[image["index"]]
        pixels = record.image.permute(1, 2, 0).numpy()
        truth = record.instance_ids.numpy()
        with naming_image(image, "prediction"):
            predicted = ids_of_output(output, self.table)
        if "panoptic_seg" not in output:
            truth = (
                np.where(truth >= INSTANCE_DIVISOR, truth, 0)
                if "instances" in output
                else ids_of_train_ids(self.table.train_id_of[truth], self.table)
            )
        maps = {"image": np.zeros_like(truth), "prediction": predicted}
        if self._has_truth:
            maps["truth"] = truth
        panels = {
            caption: draw_instance_ids(pixels, ids, self.table) for caption, ids in maps.items()
        }
        write_picture(path, side_by_side(panels))
