"""The AP of the Cityscapes instance benchmark, from masks in memory.

The rules are those of cityscapesscripts' evalInstanceLevelSemanticLabeling, for the IoU thresholds
0.5, 0.55 ... 0.95, a match being an IoU strictly above:

* True instances of fewer than 100 pixels and group regions need not be found. A prediction that
  matches one counts neither as right nor as wrong.
* Of several predictions that match an instance the one of the best score is right, the others are
  wrong.
* A prediction without a match is left out where the part of it on void and on small instances and
  groups of its class is above the threshold; a small group's pixels count twice in that part.
  Else it is wrong. Void are the plain label ids that are not evaluated, so that numbered
  instances of such a class (caravan 29001) are not.
* Predictions without a pixel do not exist.
* AP is the area under the curve of precision over recall, by the trapezoid rule, from precision 1
  at recall 0. The mean over classes leaves out those without an instance to find.

Where all predictions of a class are left out while it has instances, the official program ends with
an IndexError (its issue 89); here the AP of that class is 0, for nothing was found.

Shape letters: H, W pixels; P predictions and S true segments of thing classes of one image;
C thing classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d2_cityscapes.evaluation.class_means import mean_percent
from d2_cityscapes.evaluation.instances.rle import mask_box
from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.labels import INSTANCE_DIVISOR, VOID_TRAIN_ID, LabelTable
from d2_cityscapes.labels.instances import InstanceTable

__all__ = ["PROTOCOL", "CityscapesMatches", "cityscapes_scores", "match_masks"]

PROTOCOL = "Cityscapes"

_THRESHOLDS = np.arange(0.5, 1, 0.05)
_MIN_PIXELS = 100  # of an instance to find
_VOID, _FIRST = 1, 2  # columns of void and of the first true segment


@dataclass(frozen=True)
class CityscapesMatches:
    """What scoring keeps of one image: a row for each prediction that has a pixel.

    Attributes:
        thing_ids: (P,) contiguous thing ids.
        scores: (P,) float64.
        overlaps: (P,) float64, highest IoU with a true segment of the class.
        instances: (P,) int64, number of that segment in the image; -1 where it need not be found.
        ignored: (P,) float64, what share of the prediction may be ignored.
        true_counts: (C,) int64, instances to find.
    """

    thing_ids: np.ndarray
    scores: np.ndarray
    overlaps: np.ndarray
    instances: np.ndarray
    ignored: np.ndarray
    true_counts: np.ndarray


def match_masks(
    masks: np.ndarray,
    thing_ids: np.ndarray,
    scores: np.ndarray,
    instance_ids: np.ndarray,
    found: InstanceTable,
    table: LabelTable,
) -> CityscapesMatches:
    """Compare the predictions of one image with its truth.

    Args:
        masks: (P, H, W) bool.
        thing_ids: (P,) contiguous thing ids.
        scores: (P,).
        instance_ids: (H, W) integers, the truth.
        found: the things in it, see `find_instances`.
        table: the classes.

    Raises:
        InvalidMapError: masks of another size than the truth.
    """
    if masks.shape[1:] != instance_ids.shape:
        raise InvalidMapError(
            f"masks of {masks.shape[1:]} for an image of {instance_ids.shape}: resize the "
            "predictions to the size of the annotated image"
        )
    # Columns of what predictions lie on: nothing that matters, void, then the true segments.
    columns = np.zeros(len(table.train_id_of), dtype=np.intp)
    columns[:INSTANCE_DIVISOR][table.train_id_of[:INSTANCE_DIVISOR] == VOID_TRAIN_ID] = _VOID
    columns[found.ids] = _FIRST + np.arange(len(found))
    true_classes = np.concatenate([[-1, -1], table.thing_id_of_train[found.classes]])
    areas = np.concatenate([[0, 0], found.areas])
    crowd = np.concatenate([[False, False], found.crowd])
    small = areas < _MIN_PIXELS

    pixels = _count_pixels(masks, instance_ids, columns, len(areas))
    sizes = pixels.sum(axis=1)
    rows = np.flatnonzero(sizes)
    pixels, sizes, thing_ids = pixels[rows], sizes[rows], thing_ids[rows]
    own = np.where(true_classes == thing_ids[:, None], pixels, 0)  # on the class of the prediction
    iou = own / (sizes[:, None] + areas - own)
    best = iou.argmax(axis=1)
    ignored = pixels[:, _VOID] + own @ (crowd.astype(np.int64) + small)
    to_find = ~crowd & ~small
    return CityscapesMatches(
        thing_ids=thing_ids,
        scores=scores[rows].astype(np.float64),
        overlaps=iou.max(axis=1),
        instances=np.where(to_find[best], best, -1),
        ignored=ignored / sizes,
        true_counts=np.bincount(true_classes[to_find], minlength=len(table.things)),
    )


def cityscapes_scores(
    images: Mapping[str, CityscapesMatches], table: LabelTable
) -> dict[str, tuple[float | None, int]]:
    """AP (mean over the thresholds) and AP50 of all classes and of each.

    Args:
        images: image id -> its matches.
        table: the classes.

    Returns:
        Metric -> value in percent and the number of classes in its mean; None where no class has an
        instance to find.
    """
    precision = np.full((len(_THRESHOLDS), len(table.things)), np.nan)
    if images:
        _fill(precision, list(images.values()))
    scores = {"AP": mean_percent(precision), "AP50": mean_percent(precision[:1])}
    for metric, values in (("AP", precision), ("AP50", precision[:1])):
        scores |= {
            f"{metric}-{c.name}": mean_percent(values[:, i : i + 1])
            for i, c in enumerate(table.things)
        }
    return scores


def _count_pixels(
    masks: np.ndarray, instance_ids: np.ndarray, columns: np.ndarray, num_columns: int
) -> np.ndarray:
    """(P, num_columns) int64: pixels of each mask on the ids of each column."""
    pixels = np.zeros((len(masks), num_columns), dtype=np.int64)
    for row, mask in enumerate(np.asarray(masks, dtype=bool)):
        left, top, right, bottom = mask_box(mask)
        box = np.s_[top:bottom, left:right]
        pixels[row] = np.bincount(columns[instance_ids[box][mask[box]]], minlength=num_columns)
    return pixels


def _fill(precision: np.ndarray, images: list[CityscapesMatches]) -> None:
    """Enter AP into a (T, C) array, where there are instances to find."""
    thing_ids, scores, overlaps, instances, ignored = (
        np.concatenate([getattr(image, name) for image in images])
        for name in ("thing_ids", "scores", "overlaps", "instances", "ignored")
    )
    true_counts = np.sum([image.true_counts for image in images], axis=0)
    image_of = np.repeat(np.arange(len(images)), [len(image.scores) for image in images])
    to_find = instances >= 0
    # numbers that are unique over all images
    instances = image_of * (instances.max(initial=0) + 1) + instances
    for c in np.flatnonzero(true_counts):
        rows = np.flatnonzero(thing_ids == c)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        for t, threshold in enumerate(_THRESHOLDS):
            matched = overlaps[rows] > threshold
            hits = np.flatnonzero(matched & to_find[rows])
            _, best = np.unique(instances[rows[hits]], return_index=True)
            right = np.zeros(len(rows), dtype=bool)
            right[hits[best]] = True
            wrong = ~matched & (ignored[rows] <= threshold)
            wrong[hits] = ~right[hits]
            counted = right | wrong
            precision[t, c] = _area_under_curve(
                right[counted], scores[rows[counted]], true_counts[c]
            )


def _area_under_curve(right: np.ndarray, scores: np.ndarray, true_count: int) -> float:
    """Of precision over recall, given (K,) predictions by falling score."""
    ends = np.flatnonzero(scores != np.append(scores[1:], np.nan))  # equal scores are one point
    hits = np.cumsum(right)[ends]
    precision = np.concatenate([[1.0], hits / (ends + 1)])
    recall = np.concatenate([[0.0], hits / true_count])
    return float((np.diff(recall) * (precision[1:] + precision[:-1])).sum() / 2)
