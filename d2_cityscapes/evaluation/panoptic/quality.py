"""Panoptic quality of street scenes, from maps in memory.

The rules are those of panopticapi, which cityscapesscripts' panoptic evaluation follows too:

* A predicted and a true segment of one class match where their IoU is above 0.5, strictly.
* Pixels without truth (void) leave the union. Void *predicted* over a true segment stays in it.
* Thing pixels without an instance number in the truth (crowd) are never missed. They stay in the
  union, and a prediction without a match is forgiven where more than half of it lies on void or on
  crowd of its own class.
* Thing pixels without an instance number in the prediction claim no segment: they are void.

PQ-dagger is the variant of Porzi et al., "Seamless Scene Segmentation" (CVPR 2019): for things it
is PQ; for stuff the mean of the IoU, without a threshold, over the images whose truth has the class
(0 where the prediction lacks it). Crowd stays in that union as well.

Shape letters: H, W pixels; C classes; R runs of pixels with equal ids; T, P true and predicted
segments of one image, number 0 being void; K pairs of segments that share pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from d2_cityscapes.evaluation.class_means import mean_of_seen
from d2_cityscapes.evaluation.panoptic.map_scores import (
    InvalidMapError,
    MapScore,
    check_instance_ids,
    paired_runs,
)
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelClass, LabelTable

__all__ = ["STATE_ROWS", "InvalidMapError", "PanopticQuality", "class_groups"]

# Rows of the (6, C) state: sum of matched IoUs; counts of segments; and for stuff, the sum of the
# IoUs of PQ-dagger and the number of images whose truth has the class.
STATE_ROWS = ("iou", "tp", "fp", "fn", "dagger_iou", "dagger_images")

# Above this many possible pairs the shared pixels are counted by sorting, not in a T x P table.
_MAX_DENSE_PAIRS = 1 << 20


class PanopticQuality(MapScore):
    """PQ, SQ, RQ and PQ-dagger, accumulated over images as sums per class.

    Args:
        table: classes of the dataset.
    """

    def __init__(self, table: LabelTable = CITYSCAPES) -> None:
        # The state is (6, C), its rows as in `STATE_ROWS`.
        super().__init__(table, np.zeros((len(STATE_ROWS), len(table.classes))))

        # A segment's code is its instance id + 1, or 0 for void. Stuff has one segment in an image.
        # Index -1 of the class table is thus void's, and so is code 0.
        ids = np.arange(len(table.train_id_of))
        classes = table.train_id_of.astype(np.int64)
        things = table.thing_id_of_train[classes] >= 0
        codes = np.where(things, ids, table.label_id_of_train[classes]) + 1
        self._true_codes = np.where(classes == VOID_TRAIN_ID, 0, codes)
        self._pred_codes = np.where(things & (ids < INSTANCE_DIVISOR), 0, self._true_codes)
        self._class_of_code = np.concatenate([[VOID_TRAIN_ID], classes])
        self._crowd_code = np.concatenate([[False], things & (ids < INSTANCE_DIVISOR)])
        self._is_thing = np.array([c.is_thing for c in table.classes])

    def update(self, pred_ids: Any, true_ids: Any) -> None:
        """Add one image.

        Args:
            pred_ids: (H, W) integer map of instance ids, numpy or torch, on any device.
            true_ids: (H, W) likewise, the truth.

        Raises:
            InvalidMapError: a ValueError, where the shapes differ, or a map is not of integers or
                holds an id that the label table does not know.
        """
        pred_runs, true_runs, lengths = paired_runs(pred_ids, true_ids)
        check_instance_ids(pred_runs, self.table, "prediction")
        check_instance_ids(true_runs, self.table, "truth")
        self._add(self._pred_codes[pred_runs], self._true_codes[true_runs], lengths)

    def compute(self) -> dict[str, Any]:
        """The qualities in percent; None for a class never seen, which no mean counts.

        Returns:
            PQ, SQ, RQ and PQ_dagger as means over the classes; the first three again over things
            (PQ_th ...) and stuff (PQ_st ...); per_class, from the class name, in train-id order, to
            PQ, SQ, RQ, PQ_dagger, the plain sum of matched IoUs "iou", and tp, fp, fn.
        """
        per_class = {
            c.name: _class_quality(*self._sums[:, c.train_id].tolist(), is_thing=c.is_thing)
            for c in self.table.classes
        }
        result: dict[str, Any] = {
            metric + suffix: mean_of_seen(per_class[c.name][metric] for c in classes)
            for suffix, classes in class_groups(self.table).items()
            for metric in ("PQ", "SQ", "RQ")
        }
        result["PQ_dagger"] = mean_of_seen(q["PQ_dagger"] for q in per_class.values())
        result["per_class"] = per_class
        return result

    def _add(self, pred_codes: np.ndarray, true_codes: np.ndarray, lengths: np.ndarray) -> None:
        """Add an image given the predicted and true codes (R,) and the lengths (R,) of its runs."""
        pred_rank, pred_codes = _rank(pred_codes, len(self._class_of_code))
        true_rank, true_codes = _rank(true_codes, len(self._class_of_code))
        num_pred, num_true = len(pred_codes), len(true_codes)
        true, pred, shared = _count_pairs(true_rank, pred_rank, lengths, num_true, num_pred)  # (K,)

        pred_class = self._class_of_code[pred_codes]
        true_class = self._class_of_code[true_codes]
        pred_area = np.bincount(pred, shared, num_pred)
        true_area = np.bincount(true, shared, num_true)
        crowd = self._crowd_code[true_codes]

        def overlap(select: np.ndarray) -> np.ndarray:
            """(P,) pixels that each predicted segment shares with the selected pairs' truth."""
            return np.bincount(pred[select], shared[select], num_pred)

        same_class = (true_class[true] == pred_class[pred]) & (true > 0)
        pred_void = overlap(true == 0)
        pred_ignored = pred_void + overlap(same_class & crowd[true])

        pairs = same_class & ~crowd[true]
        t, p, inter = true[pairs], pred[pairs], shared[pairs]
        iou = inter / (pred_area[p] - pred_void[p] + true_area[t] - inter)
        match = iou > 0.5
        missed = ~crowd
        missed[0] = False
        missed[t[match]] = False
        wrong = 2 * pred_ignored <= pred_area
        wrong[0] = False
        wrong[p[match]] = False

        stuff_pair = ~self._is_thing[true_class[t]]
        stuff = true_class[1:][~self._is_thing[true_class[1:]]]
        num_classes = len(self._is_thing)
        for row, classes, weights in (
            ("iou", true_class[t[match]], iou[match]),
            ("tp", true_class[t[match]], None),
            ("fp", pred_class[wrong], None),
            ("fn", true_class[missed], None),
            ("dagger_iou", true_class[t[stuff_pair]], iou[stuff_pair]),
            ("dagger_images", stuff, None),
        ):
            self._sums[STATE_ROWS.index(row)] += np.bincount(classes, weights, num_classes)


def class_groups(table: LabelTable) -> dict[str, tuple[LabelClass, ...]]:
    """The classes that there are means over, by what their names end in: PQ, PQ_th, PQ_st."""
    return {"": table.classes, "_th": table.things, "_st": table.stuff}


def _rank(codes: np.ndarray, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Number the codes that occur, void being 0 whether it occurs or not: (R,) numbers, codes."""
    seen = np.zeros(num_codes, dtype=bool)
    seen[codes] = True
    seen[0] = True
    return (np.cumsum(seen) - 1)[codes], np.flatnonzero(seen)


def _count_pairs(
    true: np.ndarray, pred: np.ndarray, lengths: np.ndarray, num_true: int, num_pred: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The (K,) pairs of true and predicted numbers that share pixels, and how many pixels."""
    joint = true * num_pred + pred
    if num_true * num_pred <= _MAX_DENSE_PAIRS:
        table = np.bincount(joint, lengths, num_true * num_pred)
        pairs = np.flatnonzero(table)
        pixels = table[pairs]
    else:
        pairs, inverse = np.unique(joint, return_inverse=True)
        pixels = np.bincount(inverse, lengths)
    return pairs // num_pred, pairs % num_pred, pixels


def _class_quality(
    iou: float,
    tp: float,
    fp: float,
    fn: float,
    dagger_iou: float,
    dagger_images: float,
    *,
    is_thing: bool,
) -> dict[str, float | int | None]:
    """The qualities in percent of one class from its column of the state."""
    segments = tp + 0.5 * fp + 0.5 * fn
    pq = 100 * iou / segments if segments else None
    dagger = pq if is_thing else 100 * dagger_iou / dagger_images if dagger_images else None
    return {
        "PQ": pq,
        "SQ": None if pq is None else 100 * iou / tp if tp else 0.0,
        "RQ": 100 * tp / segments if segments else None,
        "PQ_dagger": dagger,
        "iou": iou,
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
    }
