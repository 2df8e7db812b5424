"""Evaluators on Detectron2's interface, chosen by what the model predicts and the dataset knows.

The truth comes from the shards that the inputs name, predictions stay in memory, and only what was
processed is scored: any subset, on any number of ranks. ``evaluate`` gives, on the main process,
{task: {metric: percent}} with nan where no class was seen, as Detectron2's tools expect it; the
same numbers with protocol and counts are the rows of results.json.

Shape letters: H, W pixels of the annotated image; C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from d2_cityscapes.config import model_tasks
from d2_cityscapes.data.shards import open_shard
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.coco import CocoImage, coco_scores, predicted_objects, true_objects
from d2_cityscapes.evaluation.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.panoptic_quality import InvalidMapError, PanopticQuality
from d2_cityscapes.evaluation.pictures import PictureWriter
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.labels import LabelTable

__all__ = [
    "EVALUATORS",
    "InstanceEvaluator",
    "PanopticEvaluator",
    "SemSegEvaluator",
    "ShardEvaluator",
    "ShardEvaluators",
    "build_evaluator",
]


class ShardEvaluator(DatasetEvaluator):
    """Base of the evaluators: each adds up a picklable state and scores the states of all ranks.

    Args:
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        tasks: which of its tasks to score.

    Attributes:
        rows: the numbers of the last ``evaluate``, on the main process.
    """

    def __init__(self, dataset_name: str, tasks: Sequence[str]) -> None:
        self.dataset_name = dataset_name
        self.tasks = tuple(tasks)
        self.table: LabelTable = MetadataCatalog.get(dataset_name).label_table
        self.rows: list[ResultRow] = []
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._add(image, output)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        states = comm.gather(self._state())
        if not comm.is_main_process():
            return None
        self.rows = self._score(states)
        results: dict[str, dict[str, float]] = {task: {} for task in self.tasks}
        for row in self.rows:
            results[row.task][row.metric] = math.nan if row.value is None else row.value
        return results

    def _add(self, image: dict, output: dict) -> None:
        raise NotImplementedError

    def _state(self) -> Any:
        raise NotImplementedError

    def _score(self, states: list) -> list[ResultRow]:
        raise NotImplementedError


class InstanceEvaluator(ShardEvaluator):
    """Tasks "bbox" and "segm" of ``output["instances"]``, by the COCO protocol."""

    def reset(self) -> None:
        self._images: dict[str, CocoImage] = {}

    def _add(self, image: dict, output: dict) -> None:
        reader, index = open_shard(image["shard"]), image["index"]
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


class SemSegEvaluator(ShardEvaluator):
    """Task "sem_seg" of ``output["sem_seg"]``, (C, H, W) scores on any device.

    As in cityscapesscripts, void truth is left out, and a class counts in the mean where the truth
    has it or the prediction claims it outside of void.
    """

    def reset(self) -> None:
        classes = len(self.table.classes)
        self._confusion = np.zeros((classes, classes), dtype=np.int64)  # truth x prediction
        self._images = 0

    def _add(self, image: dict, output: dict) -> None:
        classes = len(self._confusion)
        pred = output["sem_seg"].argmax(dim=0).cpu().numpy()
        truth = self.table.train_id_of[_true_ids(image)]
        if pred.shape != truth.shape or len(output["sem_seg"]) != classes:
            raise InvalidMapError(
                f"{image['image_id']}: sem_seg is {tuple(output['sem_seg'].shape)}, expected "
                f"{(classes, *truth.shape)}"
            )
        valid = truth < classes
        joint = truth[valid].astype(np.int64) * classes + pred[valid]
        self._confusion += np.bincount(joint, minlength=classes**2).reshape(classes, classes)
        self._images += 1

    def _state(self) -> tuple[np.ndarray, int]:
        return self._confusion, self._images

    def _score(self, states: list[tuple[np.ndarray, int]]) -> list[ResultRow]:
        confusion = np.sum([part for part, _ in states], axis=0)
        hits = np.diag(confusion)
        pixels = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
        iou = {
            c.name: 100 * float(hits[c.train_id] / pixels[c.train_id])
            for c in self.table.classes
            if pixels[c.train_id]
        }
        mean = sum(iou.values()) / len(iou) if iou else None
        per_class = {
            f"IoU-{c.name}": (iou.get(c.name), int(c.name in iou)) for c in self.table.classes
        }
        return make_rows(
            "sem_seg",
            {"mIoU": (mean, len(iou))} | per_class,
            protocol="Cityscapes",
            dataset=self.dataset_name,
            images=sum(images for _, images in states),
        )


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
        self._quality.update(predicted, _true_ids(image))
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


class ShardEvaluators(DatasetEvaluators):
    """Several evaluators as one."""

    def __init__(self, evaluators: Sequence[DatasetEvaluator]) -> None:
        super().__init__(list(evaluators))
        self.evaluators = tuple(evaluators)

    @property
    def rows(self) -> list[ResultRow]:
        """The rows of the last ``evaluate``, on the main process, for results.json."""
        return [row for evaluator in self.evaluators for row in getattr(evaluator, "rows", [])]


# An evaluator that scores several tasks at once stands at each of them.
EVALUATORS: dict[str, Callable[[str, Sequence[str]], ShardEvaluator]] = {
    "bbox": InstanceEvaluator,
    "segm": InstanceEvaluator,
    "sem_seg": SemSegEvaluator,
    "panoptic_seg": PanopticEvaluator,
}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | Path | None = None
) -> ShardEvaluators:
    """The evaluators of all tasks that the model predicts and the dataset has the truth of.

    Where cfg.TEST.NUM_PICTURES asks for it, pictures go to <output_dir>/pictures/<dataset_name>.

    Args:
        cfg: config of the model.
        dataset_name: a dataset that `register_cityscapes_shards` registered.
        output_dir: None for cfg.OUTPUT_DIR.

    Raises:
        D2CityscapesError: another dataset, or one without any of the model's tasks.
    """
    known = getattr(MetadataCatalog.get(dataset_name), "tasks", None)
    if known is None:
        raise D2CityscapesError(
            f"DATASETS.TEST {dataset_name}: not a dataset of shards; register it with "
            "d2_cityscapes.data.register_cityscapes_shards"
        )
    chosen: dict[Callable[[str, Sequence[str]], ShardEvaluator], list[str]] = {}
    for task in model_tasks(cfg):
        if task in known:
            chosen.setdefault(EVALUATORS[task], []).append(task)
    if not chosen:
        raise D2CityscapesError(
            f"DATASETS.TEST {dataset_name}: has the truth of {', '.join(known)}, but the model "
            f"predicts {', '.join(model_tasks(cfg))}"
        )
    evaluators: list[DatasetEvaluator] = [make(dataset_name, t) for make, t in chosen.items()]
    if cfg.TEST.NUM_PICTURES > 0:
        folder = Path(output_dir or cfg.OUTPUT_DIR) / "pictures" / dataset_name
        evaluators.append(PictureWriter(dataset_name, folder, cfg.TEST.NUM_PICTURES))
    return ShardEvaluators(evaluators)


def _true_ids(image: dict) -> np.ndarray:
    """(H, W) int32 instance ids of the truth of a model input."""
    return open_shard(image["shard"]).instance_ids(image["index"]).numpy()
