"""The base of the evaluators, on Detectron2's interface.

The truth comes from the shards that the inputs name, predictions stay in memory, and only what was
processed is scored: any subset, on any number of ranks. ``evaluate`` gives, on the main process,
{task: {metric: percent}} with nan where no class was seen, as Detectron2's tools expect it; the
same numbers with protocol and counts are the rows of results.json.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor

from d2_cityscapes.evaluation.panoptic.map_scores import InvalidMapError
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.modeling.panoptic.fusion import pixels_around
from d2_cityscapes.modeling.panoptic.postprocessing import empty_masks
from d2_cityscapes.shards.reader import open_shard

__all__ = ["ShardEvaluator", "each_once", "naming_image", "output_on_cpu", "true_ids"]

Part = TypeVar("Part")


class ShardEvaluator(DatasetEvaluator):
    """Base of the evaluators: each keeps a small part of every image and scores those of all ranks.

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

    def reset(self) -> None:
        self._parts: dict[str, Any] = {}  # by image

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for image, output in zip(inputs, outputs, strict=True):
            self._parts[image["image_id"]] = self._part(image, output)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        states = comm.gather(self._parts)
        if not comm.is_main_process():
            return None
        self.rows = self._score(each_once(states))
        results: dict[str, dict[str, float]] = {task: {} for task in self.tasks}
        for row in self.rows:
            results[row.task][row.metric] = math.nan if row.value is None else row.value
        return results

    def rows_of_nothing(self) -> list[ResultRow]:
        """The rows that scoring no image gives: every metric, without a value."""
        return self._score({})

    def _part(self, image: dict, output: dict) -> Any:
        """What scoring needs of one image; picklable."""
        raise NotImplementedError

    def _score(self, images: dict[str, Any]) -> list[ResultRow]:
        """The rows of the parts of all images, each once."""
        raise NotImplementedError


def each_once(states: Sequence[Mapping[str, Part]]) -> dict[str, Part]:
    """The parts of all ranks by image, in the order of the images' names.

    An image that several ranks saw, as samplers that pad their share make it, counts once; and sums
    over the parts come out the same, to the last bit, on any number of ranks.
    """
    parts = {name: part for state in states for name, part in state.items()}
    return {name: parts[name] for name in sorted(parts)}


@contextlib.contextmanager
def naming_image(image: dict, part: str) -> Iterator[None]:
    """Say in an `InvalidMapError` of the block whose prediction it is about.

    Args:
        image: the model input.
        part: of the output, such as "panoptic_seg".
    """
    try:
        yield
    except InvalidMapError as error:
        raise InvalidMapError(f"{image['image_id']}: {part}: {error}") from error


def output_on_cpu(output: dict[str, Any]) -> dict[str, Any]:
    """What a model predicts for an image, in main memory but for semantic scores.

    Those, (C, H, W) of 160 MB at full size, stay where they are: their best class is found there.
    Of masks the boxes alone are copied where nothing is outside of them, as of pasted masks.
    """
    found = dict(output)
    if "instances" in found:
        found["instances"] = _on_cpu(found["instances"])
    if "panoptic_seg" in found:
        panoptic, segments_info = found["panoptic_seg"]
        found["panoptic_seg"] = getattr(panoptic, "cpu", lambda: panoptic)(), segments_info
    return found


def _on_cpu(found: Instances) -> Instances:
    fields = dict(found.get_fields())
    masks = fields.pop("pred_masks", None)
    moved = Instances(found.image_size, **fields).to("cpu")
    if masks is None:
        return moved
    boxes = getattr(fields.get("pred_boxes"), "tensor", None)
    pasted = isinstance(masks, torch.Tensor) and masks.dtype == torch.bool
    if pasted and boxes is not None and masks.device.type != "cpu" and len(masks):
        moved.pred_masks = _masks_on_cpu(masks, boxes)
    else:
        moved.pred_masks = masks.to("cpu")
    return moved


def _masks_on_cpu(masks: Tensor, boxes: Tensor) -> Tensor:
    """(N, H, W) bool masks from a GPU, by one copy of what is in their boxes and a pixel around.

    Args:
        masks: (N, H, W).
        boxes: (N, 4) XYXY_ABS pixels.
    """
    size = (masks.shape[1], masks.shape[2])
    places = pixels_around(boxes, size)
    crops = [m[y0:y1, x0:x1] for m, (x0, y0, x1, y1) in zip(masks, places, strict=True)]
    inside = torch.cat([crop.flatten() for crop in crops])
    if inside.count_nonzero() != masks.count_nonzero():  # not those of a pasted mask
        return masks.to("cpu")
    result = empty_masks(len(masks), size, torch.device("cpu"))
    copied = inside.cpu().split([crop.numel() for crop in crops])
    for mask, pixels, (x0, y0, x1, y1) in zip(result, copied, places, strict=True):
        mask[y0:y1, x0:x1] = pixels.view(y1 - y0, x1 - x0)
    return result


def true_ids(image: dict, table: LabelTable) -> np.ndarray:
    """(H, W) int32 instance ids of the truth of a model input."""
    return open_shard(image["shard"], table).instance_ids(image["index"]).numpy()
