"""Writers of predictions in the formats of the benchmark's test server.

cityscapesscripts' evaluations read the same files. Predictions are written at the size that the
model returns, which is that of the annotated image.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from d2_cityscapes.evaluation.panoptic.instance_ids import (
    ids_of_panoptic,
    ids_of_train_ids,
    train_ids_of_sem_seg,
)
from d2_cityscapes.evaluation.shard_evaluator import each_once, naming_image
from d2_cityscapes.files import file_below, write_atomically
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import write_picture
from d2_cityscapes.shards.file import ShardFile

__all__ = [
    "PanopticSubmissionWriter",
    "SemSegSubmissionWriter",
    "as_colors",
    "panoptic_categories",
    "panoptic_segments",
]


class SemSegSubmissionWriter(DatasetEvaluator):
    """Writes ``output["sem_seg"]`` as <folder>/<image_id>_labelIds.png, 8-bit label ids.

    No other PNGs may lie under a folder that is submitted. It returns no numbers.

    Args:
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        folder: receives the files.
    """

    def __init__(self, dataset_name: str, folder: str | Path) -> None:
        self.table: LabelTable = MetadataCatalog.get(dataset_name).label_table
        self.folder = Path(folder)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            path = file_below(self.folder, f"{image['image_id']}_labelIds.png")
            with naming_image(image, "sem_seg"):
                train_ids = train_ids_of_sem_seg(output["sem_seg"], self.table)
                label_ids = ids_of_train_ids(train_ids, self.table).astype(np.uint8)
            write_picture(path, label_ids)

    def evaluate(self) -> dict:
        return {}


class PanopticSubmissionWriter(DatasetEvaluator):
    """Writes ``output["panoptic_seg"]`` in COCO's panoptic format.

    <folder>/cityscapes_panoptic_<split>/<image_id>_panoptic.png holds the segments, its colour
    R + 256 G + 256^2 B being the id; ``evaluate`` writes cityscapes_panoptic_<split>.json beside
    the folder on the main process. A segment's id is its instance id, its category the label id.
    It returns no numbers.

    Args:
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        folder: receives the files.
    """

    def __init__(self, dataset_name: str, folder: str | Path) -> None:
        self.table: LabelTable = MetadataCatalog.get(dataset_name).label_table
        shard = Path(DatasetCatalog.get(dataset_name)[0]["shard"])
        split = ShardFile(shard, self.table).metadata["split"]
        self.folder = file_below(Path(folder), f"cityscapes_panoptic_{split}")
        self.reset()

    def reset(self) -> None:
        self._entries: dict[str, tuple[dict, dict]] = {}  # image and annotation of the JSON

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            file_name = f"{image['image_id']}_panoptic.png"
            path = file_below(self.folder, file_name)
            panoptic, segments_info = output["panoptic_seg"]
            with naming_image(image, "panoptic_seg"):
                ids = ids_of_panoptic(panoptic, segments_info, self.table)
            write_picture(path, as_colors(ids))
            height, width = ids.shape
            self._entries[image["image_id"]] = (
                {
                    "id": image["image_id"],
                    "width": width,
                    "height": height,
                    "file_name": Path(image["file_name"]).name,
                },
                {
                    "image_id": image["image_id"],
                    "file_name": file_name,
                    "segments_info": panoptic_segments(ids, self.table),
                },
            )

    def evaluate(self) -> dict:
        states = comm.gather(self._entries)
        if comm.is_main_process():
            entries = each_once(states).values()
            document: dict[str, Any] = {
                "images": [image for image, _ in entries],
                "annotations": [annotation for _, annotation in entries],
                "categories": panoptic_categories(self.table),
            }
            path = self.folder.with_name(f"{self.folder.name}.json")
            write_atomically(path, [json.dumps(document).encode()])
        return {}


def panoptic_categories(table: LabelTable) -> list[dict[str, Any]]:
    """The classes as "categories" of a COCO panoptic JSON, whose ids are label ids."""
    return [
        {"id": c.label_id, "name": c.name, "color": c.color, "isthing": int(c.is_thing)}
        for c in table.classes
    ]


def panoptic_segments(ids: np.ndarray, table: LabelTable) -> list[dict[str, Any]]:
    """ "segments_info" of (H, W) instance ids, which are the ids of the segments."""
    label_id_of = table.label_id_of_train[table.train_id_of]
    found = np.flatnonzero(np.bincount(ids.ravel())).tolist()
    return [{"id": i, "category_id": int(label_id_of[i])} for i in found if i > 0]


def as_colors(ids: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of (H, W) ids, the low byte in red."""
    return np.ascontiguousarray(ids, dtype="<u4").view(np.uint8).reshape(*ids.shape, 4)[..., :3]
