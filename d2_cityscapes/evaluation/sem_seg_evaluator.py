"""Scoring of semantics.

Shape letters: H, W pixels of the annotated image; C classes.
"""

from __future__ import annotations

import numpy as np

from d2_cityscapes.evaluation.panoptic_quality import InvalidMapError
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.evaluation.shard_evaluator import ShardEvaluator, true_ids

__all__ = ["SemSegEvaluator"]


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
        truth = self.table.train_id_of[true_ids(image, self.table)]
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
