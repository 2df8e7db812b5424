"""Losses without parameters.

Shape letters: R pairs of half-open XYXY boxes; N images, C classes, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = [
    "IOU_LOSSES",
    "bootstrapped_cross_entropy",
    "ciou_loss",
    "diou_loss",
    "giou_loss",
    "map_cross_entropy",
    "mean_of_hardest",
    "upsampled_cross_entropy",
]

_BAND = 1 << 22  # upsampled logits at a time: 16 MB; elsewhere than on the CPU twice as many,
# which halves the kernels to launch and costs 50 MB at 19 classes


def giou_loss(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """1 - GIoU of each predicted box and its target, in [0, 2].

    GIoU = IoU - (C - U) / C with U the area of the union and C that of the smallest box around both
    (Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019). Unlike the IoU it has a
    gradient where the boxes do not touch.

    Computed in float32 at least, also under autocast: the area of a 300 px box overflows float16.
    An inverted box (x1 < x0 or y1 < y0) has area 0; two boxes without any area have IoU 0, and if
    they coincide in one point GIoU 0; the gradient is finite in all of these cases.

    Args:
        pred: (R, 4) floating-point boxes.
        target: (R, 4) boxes.
        reduction: "none", "mean" or "sum".

    Returns:
        (R,) losses, or a scalar. The mean and the sum of no boxes are 0, with a gradient of zeros.
    """
    return _box_loss(_giou, pred, target, reduction)


def diou_loss(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """1 - IoU + d^2 / c^2 of each predicted box and its target, in [0, 2].

    d is the distance of their centres, c the diagonal of the smallest box around both (Zheng et
    al., "Distance-IoU Loss", AAAI 2020, eq. 7). Precision, degenerate boxes (both in one point have
    a loss of 1), arguments and result as `giou_loss`.
    """
    return _box_loss(_diou, pred, target, reduction)


def ciou_loss(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """`diou_loss` + alpha * v, in which v in [0, 1] compares the shapes.

    v = (4 / pi^2) (atan(w_t / h_t) - atan(w / h))^2 and alpha = v / (1 - IoU + v), a factor without
    gradient (the same, eq. 8 to 11). A side that is not positive counts as 0; of a box without any
    the angle is 0.
    """
    return _box_loss(_ciou, pred, target, reduction)


def _box_loss(
    similarity: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor, reduction: str
) -> Tensor:
    """1 - similarity of each pair, in float32 at least, reduced."""
    if pred.shape != target.shape or pred.dim() != 2 or pred.shape[1] != 4:
        raise ValueError(
            f"expected two (R, 4) tensors, got {(*pred.shape,)} and {(*target.shape,)}"
        )
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction {reduction!r}; expected none, mean or sum")
    with torch.autocast(pred.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
        loss = 1 - similarity(pred.to(dtype), target.to(dtype))
        if reduction == "none":
            return loss
        return loss.sum() / max(len(loss), 1) if reduction == "mean" else loss.sum()


def _giou(a: Tensor, b: Tensor) -> Tensor:
    intersection, union = _overlap(a, b)
    hull = _area(torch.minimum(a[:, :2], b[:, :2]), torch.maximum(a[:, 2:], b[:, 2:]))
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def _diou(a: Tensor, b: Tensor) -> Tensor:
    apart = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    hull = torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])
    distance = _ratio(apart.square().sum(dim=1), hull.square().sum(dim=1))
    return _ratio(*_overlap(a, b)) - distance


def _ciou(a: Tensor, b: Tensor) -> Tensor:
    v = (4 / math.pi**2) * (_shape_angle(b) - _shape_angle(a)).square()
    with torch.no_grad():
        alpha = _ratio(v, 1 - _ratio(*_overlap(a, b)) + v)
    return _diou(a, b) - alpha * v


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(R,) areas of the intersections and of the unions."""
    intersection = _area(torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:]))
    return intersection, _area(a[:, :2], a[:, 2:]) + _area(b[:, :2], b[:, 2:]) - intersection


def _shape_angle(boxes: Tensor) -> Tensor:
    """(R,) atan(width / height), and 0 without a gradient where a box has neither."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).unbind(dim=1)
    point = (width <= 0) & (height <= 0)
    return torch.atan2(torch.where(point, 0.0, width), torch.where(point, 1.0, height))


def _area(low: Tensor, high: Tensor) -> Tensor:
    """(R,) areas of the boxes from (R, 2) corners; 0 where a side is not positive."""
    width, height = (high - low).clamp(min=0).unbind(dim=1)
    return width * height


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 without a gradient where the whole is 0."""
    empty = whole <= 0
    return torch.where(empty, 0.0, part / torch.where(empty, 1.0, whole))


# MODEL.ROI_BOX_HEAD.IOU_LOSS
IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": ciou_loss,
}


def bootstrapped_cross_entropy(
    logits: Tensor, target: Tensor, top_k: float = 0.25, ignore_value: int = 255
) -> Tensor:
    """Cross entropy of the hardest pixels: of each image its mean over them, and the mean of these.

    As the reference implementation of Porzi et al., "Seamless Scene Segmentation", CVPR 2019: void
    pixels have a loss of 0, but count. Of an image that is void to nine tenths, a quarter of all
    pixels is more than there are others, and zeros are averaged in. Computed in float32 at least,
    also under autocast.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) integer classes, or `ignore_value` for void.
        top_k: part of the H * W pixels of each image that is kept, rounded up; 1 for the mean.
        ignore_value: void in `target`.

    Returns:
        A scalar; 0, with a gradient of zeros, where all is void.
    """
    if logits.dim() != 4 or target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            "expected logits (N, C, H, W) and a target (N, H, W), got "
            f"{(*logits.shape,)} and {(*target.shape,)}"
        )
    return mean_of_hardest(_pixel_losses(logits, target, ignore_value), top_k)


def upsampled_cross_entropy(
    logits: Tensor, target: Tensor, scale: int, ignore_value: int = 255
) -> Tensor:
    """Cross entropy of each pixel of one image, from logits of a coarser grid.

    The logits are upsampled (bilinear, corners not aligned) and cropped to the target. This is done
    in bands of rows, and again in the backward pass: the upsampled logits, 160 MB for 19 classes
    at 1024 x 2048, never exist as a whole.

    Args:
        logits: (C, h, w), from the top left corner of the image.
        target: (H, W) integer classes, or `ignore_value`; H <= scale * h, W <= scale * w.
        scale: pixels of the target along a side of a cell of the logits.
        ignore_value: void in `target`; its loss is 0.

    Returns:
        (H, W) losses, float32 at least.
    """
    (_, h, w), (height, width) = logits.shape, target.shape
    if height > scale * h or width > scale * w:
        raise ValueError(
            f"target {(height, width)} is larger than logits {(h, w)} upsampled {scale} times"
        )
    band = _BAND if logits.device.type == "cpu" else 2 * _BAND
    rows = max(band // (len(logits) * scale * scale * w), 1)  # of cells
    bands = []
    for top in range(0, -(-height // scale), rows):
        above = max(top - 1, 0)  # a row of neighbours on either side is interpolated with
        cells = logits[:, above : top + rows + 1]
        wanted = target[top * scale : (top + rows) * scale]
        bands.append(
            checkpoint(
                _band_losses, cells, wanted, scale, (top - above) * scale, ignore_value,
                use_reentrant=False, preserve_rng_state=False,
            )
        )  # fmt: skip
    return torch.cat(bands)


def map_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    reduction: str = "mean",
    ignore_value: int = -100,
    weights: Tensor | None = None,
) -> Tensor:
    """PyTorch's cross entropy of maps, also where its algorithms have to be deterministic.

    On CUDA it sums maps in any order, and refuses to where that is not allowed
    (``torch.use_deterministic_algorithms``). Then the pixels are summed by another operation.

    Args:
        logits: (N, C, H, W).
        target: (N, H, W) integer classes, or `ignore_value`.
        reduction: "sum", or "mean" over the pixels that are not ignored.
        ignore_value: what does not count in `target`.
        weights: (N, H, W) factors of the pixels; then the sum is returned.
    """
    if weights is not None:
        losses = F.cross_entropy(logits, target, ignore_index=ignore_value, reduction="none")
        return (losses * weights).sum()
    if not torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, target, ignore_index=ignore_value, reduction=reduction)
    total = F.cross_entropy(logits, target, ignore_index=ignore_value, reduction="none").sum()
    return total / (target != ignore_value).sum() if reduction == "mean" else total


def mean_of_hardest(losses: Tensor, top_k: float) -> Tensor:
    """Mean over images of the mean of the largest losses of each.

    Args:
        losses: (N, H, W).
        top_k: part of the pixels that is kept, rounded up.
    """
    if not 0 < top_k <= 1:
        raise ValueError(f"top_k is {top_k}; expected a part above 0, up to 1")
    losses = losses.flatten(1)
    kept = max(math.ceil(round(top_k * losses.shape[1], 6)), 1)  # 0.07 * 100 is 7, not a bit more
    if kept < losses.shape[1]:
        losses = losses.topk(kept, dim=1, sorted=False).values
    return losses.mean(dim=1).mean()


def _pixel_losses(logits: Tensor, target: Tensor, ignore_value: int) -> Tensor:
    """(N, H, W) cross entropy of (N, C, H, W) logits, 0 on void."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(
            logits.to(dtype), target.long(), ignore_index=ignore_value, reduction="none"
        )


def _band_losses(
    cells: Tensor, target: Tensor, scale: int, skipped: int, ignore_value: int
) -> Tensor:
    """(B, W) losses of a band of the target, whose first row is row `skipped` of the cells'."""
    dtype = torch.promote_types(cells.dtype, torch.float32)
    upsampled = F.interpolate(
        cells[None].to(dtype), scale_factor=scale, mode="bilinear", align_corners=False
    )
    height, width = target.shape
    upsampled = upsampled[..., skipped : skipped + height, :width]
    return _pixel_losses(upsampled, target[None], ignore_value)[0]
