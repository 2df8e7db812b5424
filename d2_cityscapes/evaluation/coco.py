"""The COCO protocol on street scenes, from masks in memory, by pycocotools.

Shape letters: H, W pixels. Masks travel as COCO's compressed run lengths (RLE), some
hundred bytes each.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2_cityscapes.data.instances import InstanceTable
from d2_cityscapes.labels import LabelTable

__all__ = ["CocoImage", "coco_scores", "encode_mask", "predicted_objects", "true_objects"]


@dataclass(frozen=True)
class CocoImage:
    """The objects of one image, as `true_objects` and `predicted_objects` make them."""

    size: tuple[int, int]  # (H, W)
    truth: list[dict[str, Any]]
    predictions: list[dict[str, Any]]


def true_objects(
    found: InstanceTable, instance_ids: np.ndarray | None, table: LabelTable
) -> list[dict[str, Any]]:
    """COCO objects of the instances of an image; group regions are crowd.

    Args:
        found: the instances.
        instance_ids: (H, W) map that they stand in; None leaves the masks out.
        table: the classes.
    """
    objects = []
    for row, (left, top, right, bottom) in enumerate(found.boxes.tolist()):
        item: dict[str, Any] = {
            "category_id": int(table.thing_id_of_train[found.classes[row]]),
            "bbox": [left, top, right - left, bottom - top],
            "iscrowd": int(found.crowd[row]),
        }
        if instance_ids is not None:
            crop = instance_ids[top:bottom, left:right] == found.ids[row]
            item["segmentation"] = _encode_crop(crop, top, left, instance_ids.shape)
        objects.append(item)
    return objects


def predicted_objects(
    boxes: np.ndarray, thing_ids: np.ndarray, scores: np.ndarray, masks: np.ndarray | None
) -> list[dict[str, Any]]:
    """COCO objects of N detections.

    Args:
        boxes: (N, 4) half-open XYXY_ABS pixels.
        thing_ids: (N,) contiguous thing ids.
        scores: (N,).
        masks: (N, H, W) bool; None leaves the masks out.
    """
    objects = []
    for row, (left, top, right, bottom) in enumerate(boxes.tolist()):
        item: dict[str, Any] = {
            "category_id": int(thing_ids[row]),
            "bbox": [left, top, right - left, bottom - top],
            "score": float(scores[row]),
            "iscrowd": 0,
        }
        if masks is not None:
            item["segmentation"] = encode_mask(masks[row])
        objects.append(item)
    return objects


def coco_scores(
    images: Mapping[str, CocoImage], task: str, table: LabelTable
) -> dict[str, tuple[float | None, int]]:
    """AP and AR of one task over images.

    Small, medium and large (below 32², 96² pixels, and above) go by the area of the box in "bbox"
    and of the mask in "segm".

    Args:
        images: image id -> its objects. The order does not matter.
        task: "bbox" or "segm".
        table: the classes.

    Returns:
        Metric -> value in percent and the number of classes in its mean. Only classes with ground
        truth count; where none has any, the value is None.
    """
    classes = [{"id": c.thing_id, "name": c.name} for c in table.things]
    infos: list[dict] = []
    truth: list[dict] = []
    predictions: list[dict] = []
    for number, image_id in enumerate(sorted(images)):
        image = images[image_id]
        infos.append({"id": number, "height": image.size[0], "width": image.size[1]})
        truth += _annotations(image.truth, number, task, first_id=len(truth) + 1)
        predictions += _annotations(image.predictions, number, task, first_id=len(predictions) + 1)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            _coco(infos, truth, classes), _coco(infos, predictions, classes), task
        )
        evaluation.evaluate()
        evaluation.accumulate()
    # precision is (IoU thresholds .5:.05:.95, recall points, classes, areas, detections per image),
    # recall the same without recall points; areas: all, small, medium, large; -1: no truth there.
    precision = evaluation.eval["precision"][..., -1].transpose(2, 3, 0, 1)
    recall = evaluation.eval["recall"][..., -1].transpose(1, 2, 0)
    scores = {
        "AP": _mean(precision[:, 0]),
        "AP50": _mean(precision[:, 0, 0]),
        "AP75": _mean(precision[:, 0, 5]),
        "APs": _mean(precision[:, 1]),
        "APm": _mean(precision[:, 2]),
        "APl": _mean(precision[:, 3]),
        "AR@100": _mean(recall[:, 0]),
    }
    return scores | {
        f"AP-{c.name}": _mean(precision[i : i + 1, 0]) for i, c in enumerate(table.things)
    }


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """RLE of an (H, W) bool mask, byte for byte that of pycocotools, reading little but its box."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return _compress(np.array([mask.size]), mask.shape)
    band = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(band.any(axis=0))
    crop = band[:, columns[0] : columns[-1] + 1]
    return _encode_crop(crop, int(rows[0]), int(columns[0]), mask.shape)


def _encode_crop(crop: np.ndarray, top: int, left: int, size: tuple[int, ...]) -> dict[str, Any]:
    """RLE of the mask of size (H, W) that is a bool crop at (top, left) and false elsewhere."""
    height, width = crop.shape
    columns = np.zeros((width, height + 2), dtype=bool)
    columns[:, 1:-1] = crop.T
    column, row = np.divmod(np.flatnonzero(columns[:, 1:] != columns[:, :-1]), height + 1)
    # Positions, down the columns, where runs of ones begin and end; a run that reaches the last row
    # goes on where the next column begins with ones.
    bounds = (left + column) * size[0] + top + row
    touching = np.flatnonzero(bounds[1:] == bounds[:-1])
    bounds = np.delete(bounds, [*touching, *(touching + 1)])
    pixels = size[0] * size[1]
    counts = np.diff(bounds, prepend=0, append=pixels)
    if counts[-1] == 0 and len(counts) > 1:
        counts = counts[:-1]
    return _compress(counts, size)


def _compress(counts: np.ndarray, size: tuple[int, ...]) -> dict[str, Any]:
    return mask_api.frPyObjects({"counts": counts.tolist(), "size": list(size)}, *size)


def _annotations(
    objects: list[dict[str, Any]], image: int, task: str, first_id: int
) -> list[dict[str, Any]]:
    """Objects of one image as annotations, numbered on from first_id: 0 would mean "no match"."""
    if task == "bbox":
        areas = [item["bbox"][2] * item["bbox"][3] for item in objects]
    else:
        areas = [float(mask_api.area(item["segmentation"])) for item in objects]
    return [
        {**item, "id": first_id + i, "image_id": image, "area": area}
        for i, (item, area) in enumerate(zip(objects, areas, strict=True))
    ]


def _coco(infos: list[dict], annotations: list[dict], classes: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {"images": infos, "annotations": annotations, "categories": classes}
    coco.createIndex()
    return coco


def _mean(values: np.ndarray) -> tuple[float | None, int]:
    """Percentage over what has ground truth (> -1), and how many of the classes (axis 0) have."""
    seen = values > -1
    classes = int(seen.reshape(len(values), -1).any(axis=1).sum())
    return (100 * float(values[seen].mean()), classes) if classes else (None, 0)
