"""mmdetection's Mask R-CNN R50-FPN, written down from its configs with its names of the tensors.

The slow version that a converted model is held against. What each part computes is from the
published mask-rcnn_r50_fpn.py and the layers it names: anchors of 8 strides that begin in the
corner and are not rounded; deltas (dx, dy, dw, dh) times 0.1, 0.1, 0.2, 0.2, with dw and dh
within log(62.5) of 0; regions pooled on the level floor(log2(side / 56)), with the half-pixel
shift and as many points as there are cells; background last. Suppression is the greedy loop, in
Python.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.ops import roi_align

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
STRIDES = (4, 8, 16, 32, 64)
LARGEST = abs(math.log(16 / 1000))
PER_LEVEL, PROPOSALS, DETECTIONS = 1000, 1000, 100


class ConvModule(nn.Module):
    """mmcv's: the convolution is called "conv"."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Neck(nn.Module):
    def __init__(self, inputs: list[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(ConvModule(n, width, 1) for n in inputs)
        self.fpn_convs = nn.ModuleList(ConvModule(width, width, 3) for _ in inputs)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        x = [lateral(own) for lateral, own in zip(self.lateral_convs, maps, strict=True)]
        for i in (2, 1, 0):
            x[i] = x[i] + x[i + 1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        found = [output(own) for output, own in zip(self.fpn_convs, x, strict=True)]
        return [*found, found[-1][:, :, ::2, ::2]]


class RPNHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.rpn_conv = nn.Conv2d(width, width, 3, padding=1)
        self.rpn_cls = nn.Conv2d(width, 3, 1)
        self.rpn_reg = nn.Conv2d(width, 12, 1)


class BoxHead(nn.Module):
    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Linear(width * 49, hidden), nn.Linear(hidden, hidden)]
        self.shared_fcs = nn.ModuleList(layers)
        self.fc_cls = nn.Linear(hidden, classes + 1)
        self.fc_reg = nn.Linear(hidden, classes * 4)


class MaskHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ConvModule(width, width, 3) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.conv_logits = nn.Conv2d(width, classes, 1)


class MmdetectionMaskRCNN(nn.Module):
    def __init__(self, depth: int = 50, width: int = 256, hidden: int = 1024, classes: int = 8):
        super().__init__()
        self.backbone = getattr(resnet, f"resnet{depth}")(weights=None)
        del self.backbone.fc
        channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
        self.neck = Neck(channels, width)
        self.rpn_head = RPNHead(width)
        self.roi_head = nn.Module()
        self.roi_head.bbox_head = BoxHead(width, hidden, classes)
        self.roi_head.mask_head = MaskHead(width, classes)

    @torch.no_grad()
    def forward(self, picture: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of a (3, H, W) uint8 RGB picture whose sides 32 divides: proposals and detections."""
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
        maps = self.neck(self._features(((picture - mean) / std)[None]))
        size = picture.shape[1], picture.shape[2]
        proposals = self._proposals(maps, size)
        boxes, scores, classes = self._detections(maps[:4], proposals, size)
        masks = self._masks(maps[:4], boxes, classes)
        detections = {"boxes": boxes, "scores": scores, "classes": classes, "masks": masks}
        return {"boxes": proposals}, detections

    def _features(self, x: Tensor) -> list[Tensor]:
        body = self.backbone
        x = body.maxpool(body.relu(body.bn1(body.conv1(x))))
        found = []
        for k in range(1, 5):
            x = getattr(body, f"layer{k}")(x)
            found.append(x)
        return found

    def _proposals(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        boxes, scores, levels = [], [], []
        head = self.rpn_head
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            hidden = head.rpn_conv(x).relu()
            objectness = head.rpn_cls(hidden)[0].permute(1, 2, 0).flatten()
            deltas = head.rpn_reg(hidden)[0].permute(1, 2, 0).reshape(-1, 4)
            own = _decoded(_anchors(x.shape[2], x.shape[3], stride), deltas, (1, 1, 1, 1), size)
            best = objectness.sigmoid().sort(descending=True).indices[:PER_LEVEL]
            boxes.append(own[best])
            scores.append(objectness[best].sigmoid())
            levels += [level] * len(best)
        kept = _suppressed(torch.cat(boxes), torch.cat(scores), torch.tensor(levels), 0.7)
        return torch.cat(boxes)[kept[:PROPOSALS]]

    def _detections(
        self, maps: list[Tensor], proposals: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = self.roi_head.bbox_head
        x = _pooled(maps, proposals, 7).flatten(start_dim=1)
        for layer in head.shared_fcs:
            x = layer(x).relu()
        scores = head.fc_cls(x).softmax(dim=1)[:, :-1]
        number = scores.shape[1]
        deltas = head.fc_reg(x).reshape(-1, 4)
        repeated = proposals.repeat_interleave(number, dim=0)
        boxes = _decoded(repeated, deltas, (0.1, 0.1, 0.2, 0.2), size)
        classes = torch.arange(number).repeat(len(proposals))
        scores = scores.flatten()
        likely = scores > 0.05
        boxes, scores, classes = boxes[likely], scores[likely], classes[likely]
        kept = _suppressed(boxes, scores, classes, 0.5)[:DETECTIONS]
        return boxes[kept], scores[kept], classes[kept]

    def _masks(self, maps: list[Tensor], boxes: Tensor, classes: Tensor) -> Tensor:
        head = self.roi_head.mask_head
        x = _pooled(maps, boxes, 14)
        for layer in head.convs:
            x = layer(x).relu()
        logits = head.conv_logits(head.upsample(x).relu())
        return logits.sigmoid()[torch.arange(len(boxes)), classes]


def _anchors(height: int, width: int, stride: int) -> Tensor:
    found = []
    for y in range(height):
        for x in range(width):
            for ratio in (0.5, 1.0, 2.0):
                w, h = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                cx, cy = x * stride, y * stride
                found.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor(found)


def _decoded(
    boxes: Tensor, deltas: Tensor, deviations: tuple[float, ...], size: tuple[int, int]
) -> Tensor:
    dx, dy, dw, dh = (deltas * torch.tensor(deviations)).unbind(dim=1)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    cx, cy = boxes[:, 0] + w / 2 + dx * w, boxes[:, 1] + h / 2 + dy * h
    w, h = (side * d.clamp(-LARGEST, LARGEST).exp() for side, d in ((w, dw), (h, dh)))
    corners = [(cx - w / 2), (cy - h / 2), (cx + w / 2), (cy + h / 2)]
    limits = (size[1], size[0], size[1], size[0])
    return torch.stack([x.clamp(0, n) for x, n in zip(corners, limits, strict=True)], dim=1)


def _suppressed(boxes: Tensor, scores: Tensor, groups: Tensor, most: float) -> list[int]:
    """By falling score, each unless it overlaps a better one of its group by more than `most`."""
    sides = boxes[:, 2:] - boxes[:, :2]
    alive = (sides > 0).all(dim=1)
    areas = sides.prod(dim=1)
    kept = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[:, :2], boxes[i, :2])
        high = torch.minimum(boxes[:, 2:], boxes[i, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        alive &= (common / (areas + areas[i] - common) <= most) | (groups != groups[i])
    return kept


def _pooled(maps: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    found = []
    for box in boxes:
        size = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
        level = min(max(int(torch.floor(torch.log2(size / 56 + 1e-6))), 0), 3)
        scale = 1 / STRIDES[level]
        found.append(roi_align(maps[level], [box[None]], side, scale, aligned=True))
    return torch.cat(found) if found else maps[0].new_zeros(0, maps[0].shape[1], side, side)
