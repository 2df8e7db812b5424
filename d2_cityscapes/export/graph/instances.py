"""Proposals and regions of a Faster or Mask R-CNN, of its own layers.

Shape letters: (1, C, ., .) feature maps; A anchors of a cell; R regions; K thing classes; N
detections; M x M cells of a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms, roi_align

from d2_cityscapes.export.graph.boxes import (
    anchors_of_map,
    clipped,
    kept_by_class,
    nonempty,
    strongest,
)
from d2_cityscapes.export.graph.pixels import Pixels
from d2_cityscapes.export.graph.semantics import label_map
from d2_cityscapes.modeling.anchors.rounded import RoundedAnchorGenerator
from d2_cityscapes.modeling.mask_head import SoftmaxMaskRCNNHead

__all__ = ["InstanceGraph", "PanopticGraph"]

Features = Mapping[str, Tensor]


class _Proposals(nn.Module):
    """Detectron2's RPN at inference: (R, 4) proposals of a picture."""

    head: nn.Module
    transform: Any

    def __init__(self, rpn: Any) -> None:
        super().__init__()
        generator = rpn.anchor_generator
        self.names = tuple(rpn.in_features)
        self.head = rpn.rpn_head
        self.strides, self.offset = tuple(generator.strides), float(generator.offset)
        self.rounded = isinstance(generator, RoundedAnchorGenerator)
        for number, anchors in enumerate(generator.cell_anchors):
            self.register_buffer(f"anchors{number}", anchors.detach().clone().float())
        self.transform = rpn.box2box_transform
        self.before, self.behind = int(rpn.pre_nms_topk[False]), int(rpn.post_nms_topk[False])
        self.threshold, self.least = float(rpn.nms_thresh), float(rpn.min_box_size)

    def forward(self, features: Features, limits: Tensor) -> Tensor:
        maps = [features[name] for name in self.names]
        boxes, scores = [], []
        finest = [side * self.strides[0] for side in maps[0].shape[2:]]
        for number, (logits, deltas) in enumerate(zip(*self.head(maps), strict=True)):
            size, steps = tuple(logits.shape[2:]), (self.strides[number],) * 2
            if self.rounded:  # as `RoundedAnchorGenerator` spreads them
                steps = tuple(whole // side for whole, side in zip(finest, size, strict=True))
            cell_anchors = getattr(self, f"anchors{number}")
            anchors = anchors_of_map(cell_anchors, size, steps, self.offset)
            own, strength = self._level(logits, deltas, anchors, limits)
            boxes.append(own)
            scores.append(strength)
        return torch.cat(boxes)[strongest(torch.cat(scores), self.behind)]

    def _level(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The best proposals of a level that no better one of it overlaps, and their scores."""
        rows, columns = logits.shape[2:]
        scores = logits[0].permute(1, 2, 0).reshape(-1)
        deltas = deltas[0].view(-1, 4, rows, columns).permute(2, 3, 0, 1).reshape(-1, 4)
        best, index = scores.topk(torch.sym_min(self.before, scores.shape[0]))
        boxes = self.transform.apply_deltas(deltas[index], anchors[index])
        boxes = clipped(boxes, limits)
        some = nonempty(boxes, self.least)
        boxes, best = boxes[some], best[some]
        kept = nms(boxes, best, self.threshold)
        return boxes[kept], best[kept]


class _Regions(nn.Module):
    """Detectron2's `ROIPooler`: (R, C, S, S) features of R boxes."""

    def __init__(self, pooler: Any) -> None:
        super().__init__()
        self.side = pooler.output_size[0]
        self.scales = [float(level.spatial_scale) for level in pooler.level_poolers]
        self.sampling = int(pooler.level_poolers[0].sampling_ratio)
        self.aligned = bool(pooler.level_poolers[0].aligned)
        self.lowest = int(pooler.min_level)
        self.canonical = float(pooler.canonical_box_size), int(pooler.canonical_level)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        if len(maps) == 1:
            return self._pooled(maps[0], boxes, self.scales[0])
        size, level = self.canonical
        sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
        levels = torch.floor(level + torch.log2(sides / size + 1e-8)) - self.lowest
        levels = levels.clamp(0, len(maps) - 1)
        members = [torch.nonzero(levels == number).squeeze(1) for number in range(len(maps))]
        pooled = [
            self._pooled(own, boxes[index], scale)
            for own, index, scale in zip(maps, members, self.scales, strict=True)
        ]
        order = torch.cat(members)
        torch._check(order.shape[0] == boxes.shape[0])  # each on one level
        return torch.cat(pooled)[order.argsort()]

    def _pooled(self, own: Tensor, boxes: Tensor, scale: float) -> Tensor:
        first = boxes.new_zeros((boxes.shape[0], 1))
        rois = torch.cat([first, boxes], dim=1)
        return roi_align(own, rois, self.side, scale, self.sampling, self.aligned)


class _Detections(nn.Module):
    """Detectron2's ROI heads at inference."""

    def __init__(self, heads: Any) -> None:
        super().__init__()
        predictor = heads.box_predictor
        self.box_names = tuple(heads.box_in_features)
        self.box_regions = _Regions(heads.box_pooler)
        self.box_head, self.predictor = heads.box_head, predictor
        self.classes = int(heads.num_classes)
        self.sigmoid = bool(getattr(predictor, "use_sigmoid_ce", False))
        self.least, self.threshold = predictor.test_score_thresh, predictor.test_nms_thresh
        self.most = predictor.test_topk_per_image
        self.masks = bool(heads.mask_on)
        if self.masks:
            self.mask_names = tuple(heads.mask_in_features)
            self.mask_regions = _Regions(heads.mask_pooler)
            self.mask_head = heads.mask_head

    def forward(self, features: Features, proposals: Tensor, limits: Tensor) -> tuple[Tensor, ...]:
        maps = [features[name] for name in self.box_names]
        logits, deltas = self.predictor(self.box_head(self.box_regions(maps, proposals)))
        scores = logits.sigmoid() if self.sigmoid else F.softmax(logits, dim=1)
        boxes = self.predictor.box2box_transform.apply_deltas(deltas, proposals)
        boxes = clipped(boxes.reshape(-1, 4), limits).reshape(-1, deltas.shape[1] // 4, 4)
        region, of_class = torch.nonzero(scores[:, : self.classes] > self.least).unbind(1)
        scores = scores[region, of_class]
        # class-agnostic boxes stand for all classes
        boxes = boxes[region, 0] if boxes.shape[1] == 1 else boxes[region, of_class]
        kept = kept_by_class(boxes, scores, of_class, self.threshold)[: self.most]
        boxes, scores, of_class = boxes[kept], scores[kept], of_class[kept]
        if not self.masks:
            return boxes, scores, of_class
        maps = [features[name] for name in self.mask_names]
        return boxes, scores, of_class, self._cells(self.mask_regions(maps, boxes), of_class)

    def _cells(self, regions: Tensor, of_class: Tensor) -> Tensor:
        """(N, M, M) probabilities of the mask of each detection's class."""
        logits = self.mask_head.layers(regions)
        softmax = isinstance(self.mask_head, SoftmaxMaskRCNNHead)
        cells = F.softmax(logits, dim=1) if softmax else logits.sigmoid()
        if logits.shape[1] - softmax == 1:  # class-agnostic
            return cells[:, 0]
        return cells[torch.arange(cells.shape[0]), of_class]


class InstanceGraph(nn.Module):
    """A picture to {"boxes", "scores", "classes", "masks"}."""

    def __init__(self, pixels: Pixels, model: Any) -> None:
        """
        Args:
            pixels: the beginning of the graph.
            model: a `GeneralizedRCNN` with an RPN and standard ROI heads.
        """
        super().__init__()
        self.pixels = pixels
        self.backbone = model.backbone
        self.proposals = _Proposals(model.proposal_generator)
        self.detections = _Detections(model.roi_heads)
        masks = ("masks",) if self.detections.masks else ()
        self.outputs: tuple[str, ...] = ("boxes", "scores", "classes", *masks)

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            image: as `Pixels` takes it.
            size: (4,) int64 h, w, H, W.

        Returns:
            boxes (N, 4) float32 XYXY in pixels of the network's picture, h x w; scores (N,)
            float32, descending; classes (N,) int64 thing ids; masks (N, M, M) float32
            probabilities within the boxes.
        """
        limits = size[:2]
        features = self.backbone(self.pixels(image, limits))
        return self.found(features, limits)

    def found(self, features: Features, limits: Tensor) -> tuple[Tensor, ...]:
        return self.detections(features, self.proposals(features, limits), limits)


class PanopticGraph(InstanceGraph):
    """A picture to what `InstanceGraph` gives, and {"sem_seg"}."""

    def __init__(self, pixels: Pixels, model: Any) -> None:
        """
        Args:
            pixels: the beginning of the graph.
            model: a `SeamlessPanoptic`.
        """
        super().__init__(pixels, model)
        self.sem_seg_head = model.sem_seg_head
        self.outputs = (*self.outputs, "sem_seg")

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, ...]:
        limits = size[:2]
        features = self.backbone(self.pixels(image, limits))
        logits = self.sem_seg_head(features, None)[0]
        labels = label_map(logits, size, self.pixels.sizes)
        return (*self.found(features, limits), labels)
