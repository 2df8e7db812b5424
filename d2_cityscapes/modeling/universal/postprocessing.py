"""From the queries of one image to instances, semantics and panoptics, a few masks at a time.

The rules are those of Mask2Former's own inference. A hundred masks of 1024 x 2048 pixels would be
840 MB of logits, and several times that on the way; here each mask is brought to the wanted size
once, beside few others, and what each task needs of it is taken at that moment.

Shape letters: Q queries; C classes; a, b cells of a mask; D detections; H, W pixels of the output.
Sizes are (height, width) in pixels: *padded*, of the batch that the network sees; *image*, of one
image in it, from the top left; *output*, the wanted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.labels import LabelTable
from d2_cityscapes.layers.best_classes import best_classes
from d2_cityscapes.modeling.panoptic.postprocessing import empty_masks

__all__ = ["QueryResults", "postprocess_queries", "resize_masks"]

Size = tuple[int, int]
_AT_ONCE = 2**24  # pixels of masks, 64 MiB of float32


def resize_masks(masks: Tensor, padded_size: Size, image_size: Size, output_size: Size) -> Tensor:
    """(Q, H, W) float32 logits of (Q, a, b) ones: to the padded size, cut, to the output's."""
    masks = _interpolate(masks.float(), padded_size)[:, : image_size[0], : image_size[1]]
    return masks if image_size == output_size else _interpolate(masks, output_size)


def _interpolate(masks: Tensor, size: Size) -> Tensor:
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


@torch.no_grad()
def postprocess_queries(
    classes: Tensor,
    masks: Tensor,
    sizes: tuple[Size, Size, Size],
    *,
    table: LabelTable,
    instances: bool = True,
    sem_seg_scores: bool = True,
    detections: int = 100,
    object_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    at_once: int = _AT_ONCE,
) -> dict[str, Any]:
    """What `UniversalSegmentor` predicts for an image.

    Args:
        classes: (Q, C + 1) logits, the last of "no object".
        masks: (Q, a, b) logits.
        sizes: padded, image and output size.
        table: the classes.
        instances: whether "instances" and "panoptic_seg" are wanted too.
        sem_seg_scores: whether semantics are scores, else classes.
        detections: D at most; pairs of a query and a class of stuff count too, as published. -1:
            all of them.
        object_threshold: panoptic masks have a larger score than this.
        overlap_threshold: and are the best at this part of their pixels, at least.
        at_once: pixels of masks that are held in float32.

    Returns:
        "sem_seg": (C, H, W) sums of p(class) p(mask) over the queries, or (H, W) uint8 train ids.
        "instances": pred_masks (D, H, W) bool, pred_boxes around them, scores, pred_classes (thing
        ids). "panoptic_seg": as of `fuse_panoptic`.
    """
    found = QueryResults(
        classes,
        sizes[2],
        table,
        instances=instances,
        detections=detections,
        object_threshold=object_threshold,
    )
    for queries in _few(len(masks), sizes[2], at_once):
        found.add(queries, resize_masks(masks[queries], *sizes))
    semantics = found.semantics if sem_seg_scores else best_classes(found.semantics)
    result: dict[str, Any] = {"sem_seg": semantics}
    if instances:
        result["instances"] = found.instances()
        result["panoptic_seg"] = found.panoptic(overlap_threshold)
    return result


def _few(number: int, size: Size, at_once: int) -> Iterator[slice]:
    step = max(at_once // max(size[0] * size[1], 1), 1)
    for start in range(0, number, step):
        yield slice(start, min(start + step, number))


class QueryResults:
    """Collects from resized masks, in any parts but in order, what the tasks need of them.

    Attributes:
        semantics: (C, H, W) float32.
    """

    def __init__(
        self,
        classes: Tensor,
        size: Size,
        table: LabelTable,
        *,
        instances: bool,
        detections: int,
        object_threshold: float,
    ) -> None:
        """
        Args:
            classes: (Q, C + 1) logits.
            size: (H, W).
            table, instances, detections, object_threshold: as of `postprocess_queries`.
        """
        probabilities = classes.float().softmax(-1)
        number, device = len(classes), classes.device
        self._size, self._table, self._wants_instances = size, table, instances
        self._probabilities = probabilities[:, :-1]
        self.semantics = torch.zeros(probabilities.shape[1] - 1, *size, device=device)
        if not instances:
            return
        # of masks: pixels inside, and the sum of their probabilities
        self._areas = torch.zeros(number, dtype=torch.int64, device=device)
        self._sums = torch.zeros(number, device=device)
        self._queries, self._classes = self._detected(detections)
        self._needed = self._queries.unique()  # ascending
        self._masks = empty_masks(len(self._needed), size, device)
        # of panoptics: the best query at each pixel, and whether its mask holds the pixel
        self._scores, self._labels = probabilities.max(-1)
        kept = (self._labels < probabilities.shape[1] - 1) & (self._scores > object_threshold)
        self._kept = dict.fromkeys(kept.nonzero()[:, 0].tolist(), 0)  # -> pixels that it holds
        self._best = torch.full(size, -1.0, device=device)
        self._winner = torch.full(size, -1, dtype=torch.int16, device=device)
        self._inside = torch.zeros(size, dtype=torch.bool, device=device)

    def _detected(self, detections: int) -> tuple[Tensor, Tensor]:
        """(D,) queries and thing train ids of the best pairs of a query and a class."""
        scores = self._probabilities.flatten()
        count = scores.numel() if detections < 0 else min(detections, scores.numel())
        best = scores.topk(count)[1]
        classes = best % self._probabilities.shape[1]
        things = torch.tensor([c.train_id for c in self._table.things], device=classes.device)
        kept = torch.isin(classes, things)
        return best[kept] // self._probabilities.shape[1], classes[kept]

    def add(self, queries: slice, logits: Tensor) -> None:
        """Take in the next masks.

        Args:
            queries: which ones.
            logits: (n, H, W) float32, which are overwritten.
        """
        if self._wants_instances:
            inside = logits > 0
            self._areas[queries] = inside.flatten(1).sum(1)
            places = torch.arange(queries.start, queries.stop, device=logits.device)
            rows = torch.isin(self._needed, places).nonzero()[:, 0]
            self._masks[rows] = inside[self._needed[rows] - queries.start]
        probabilities = logits.sigmoid_()
        weights = self._probabilities[queries]
        self.semantics += torch.einsum("qc,qhw->chw", weights, probabilities)
        if not self._wants_instances:
            return
        for query, own, mask in zip(
            range(queries.start, queries.stop), probabilities, inside, strict=True
        ):
            self._sums[query] = (own * mask).sum()
            if query in self._kept:
                holds = own >= 0.5
                self._kept[query] = holds.sum()
                own *= self._scores[query]
                better = own > self._best
                torch.where(better, own, self._best, out=self._best)
                self._winner.masked_fill_(better, query)
                torch.where(better, holds, self._inside, out=self._inside)

    def instances(self) -> Instances:
        """Masks that hold a pixel, scored by p(class) times the mean p(mask) inside of the mask."""
        quality = self._sums / (self._areas + 1e-6)
        scores = self._probabilities[self._queries, self._classes] * quality[self._queries]
        some = self._areas[self._queries] > 0
        queries, scores = self._queries[some], scores[some]
        rows = torch.searchsorted(self._needed, queries)
        found = Instances(self._size)
        found.pred_masks = self._masks[rows]
        found.pred_boxes = Boxes(_boxes(self._masks)[rows])
        found.scores = scores
        things = torch.from_numpy(self._table.thing_id_of_train).to(queries.device)
        found.pred_classes = things[self._classes[some]].long()
        return found

    def panoptic(self, overlap_threshold: float) -> tuple[Tensor, list[dict[str, Any]]]:
        """Segments of the queries that are the best at enough of their pixels.

        Those of one class of stuff are one segment.
        """
        winner = self._winner.long() + 1  # 0: none
        number = len(self._areas) + 1
        best_at = torch.bincount(winner.flatten(), minlength=number)[1:].tolist()
        held = torch.bincount(winner[self._inside], minlength=number)[1:].tolist()
        lookup = torch.zeros(number, dtype=torch.int32)
        segments: list[dict[str, Any]] = []
        of_stuff: dict[int, dict[str, Any]] = {}
        labels = self._labels.tolist()
        for query, area in self._kept.items():
            if not held[query] or best_at[query] < overlap_threshold * int(area):
                continue
            label = labels[query]
            segment = of_stuff.get(label)
            if segment is None:
                is_thing = bool(self._table.thing_id_of_train[label] >= 0)
                segment = {"id": len(segments) + 1, "isthing": is_thing, "category_id": label}
                segment["area"] = 0
                segments.append(segment)
                if is_thing:
                    segment["score"] = float(self._scores[query])
                else:
                    of_stuff[label] = segment
            segment["area"] += held[query]
            lookup[query + 1] = segment["id"]
        panoptic = lookup.to(winner.device)[winner]
        return panoptic.masked_fill_(~self._inside, 0), segments


def _boxes(masks: Tensor) -> Tensor:
    """(D, 4) float32 half-open XYXY_ABS around masks (D, H, W); zeros around an empty one."""
    boxes = torch.zeros(len(masks), 4, device=masks.device)
    for box, mask in zip(boxes, masks, strict=True):
        for axis in (0, 1):
            some = mask.any(dim=axis).nonzero()
            if len(some):
                box[axis], box[axis + 2] = some[0, 0], some[-1, 0] + 1
    return boxes
