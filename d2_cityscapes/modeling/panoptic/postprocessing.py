"""Raw predictions of an image made results of the wanted size, as Detectron2 does it, but sooner.

The numbers are those of Detectron2's own `sem_seg_postprocess` and `detector_postprocess`, bit for
bit. Three sizes (height, width) in pixels: *padded*, of the batch that the network sees; *image*,
of one image in it, from the top left; *output*, H and W, the wanted one. N instances, C classes,
M x M cells of a mask.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances, ROIMasks
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.layers.best_classes import best_classes
from d2_cityscapes.modeling.panoptic.fusion import pixels_around
from d2_cityscapes.structures.cropped_masks import Crop, CroppedMasks

__all__ = [
    "CROPPED",
    "crop_masks",
    "empty_masks",
    "paste_masks",
    "postprocess_instances",
    "resize_scores",
    "resize_to_labels",
]

Size = tuple[int, int]
# A key of a model's input, beside "height": True for pred_masks as `CroppedMasks`.
CROPPED = "cropped_masks"
_AT_ONCE = 2**22  # pixels of a mask that are sampled together: 50 MB of float32 and of places


def resize_scores(logits: Tensor, image_size: Size, output_size: Size) -> Tensor:
    """What `sem_seg_postprocess` makes of logits: (C, H, W) of the image alone.

    Nothing is computed where the image has the output's size, a view is enough then; Detectron2
    interpolates all the same.

    Args:
        logits: (C, h, w) of the padded image.
        image_size: the part that is cut out.
        output_size: what this is brought to.
    """
    own = logits[:, : image_size[0], : image_size[1]]
    return own if image_size == output_size else _interpolate(own, output_size)


def resize_to_labels(
    logits: Tensor, padded_size: Size, image_size: Size, output_size: Size
) -> Tensor:
    """(H, W) uint8 classes of the best scores, made class by class: never (C, H, W) scores.

    Below H + W = 129 the CPU interpolates several classes in another way than one, so that classes
    with the same score to the last bit may change places.

    Args:
        logits: (C, h, w) of the padded image, coarser than it as a semantic head has them.
        padded_size: what the head would bring them to.
        image_size, output_size: as in `resize_scores`.
    """

    def scores(own: Tensor) -> Tensor:
        if own.shape[1:] != padded_size:
            own = _interpolate(own.float(), padded_size)
        return resize_scores(own, image_size, output_size)[0]

    return best_classes(scores(own) for own in logits.split(1))


def _interpolate(logits: Tensor, size: Size) -> Tensor:
    """(C, *size), bilinear, of (C, h, w).

    On the CPU PyTorch would wait for 160 MB in pages of 4 kB as long as it computes; numpy asks the
    system for pages of 2 MB.
    """
    if logits.device.type != "cpu" or logits.dtype != torch.float32 or torch.is_grad_enabled():
        return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
    result = torch.from_numpy(np.empty((1, len(logits), *size), dtype=np.float32))
    torch.ops.aten.upsample_bilinear2d.out(logits[None], size, False, out=result)
    return result[0]


def postprocess_instances(
    detections: Instances, output_size: Size, *, cropped: bool = False
) -> Instances:
    """What `detector_postprocess` makes of them, by `paste_masks`.

    Args:
        detections: of the size of the image, with `pred_boxes`, and if it has masks `pred_masks`
            (N, 1, M, M) probabilities. The boxes are scaled in place.
        output_size: of the result, whose `pred_masks` are (N, H, W) bool.
        cropped: the same as `CroppedMasks`, so that memory does not grow with N bitmaps.
    """
    fields = detections.get_fields()
    if "pred_masks" not in fields:
        return detector_postprocess(detections, *output_size)
    masks = fields["pred_masks"]
    rest = {name: value for name, value in fields.items() if name != "pred_masks"}
    cells = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
    # under a name that it does not paste, so that it only drops those of empty boxes
    found = detector_postprocess(
        Instances(detections.image_size, **rest, mask_cells=cells), *output_size
    )
    cells = found.mask_cells
    found.remove("mask_cells")
    paste = crop_masks if cropped else paste_masks
    found.pred_masks = paste(cells, found.pred_boxes.tensor, output_size)
    return found


@torch.no_grad()
def paste_masks(cells: Tensor, boxes: Tensor, size: Size, threshold: float = 0.5) -> Tensor:
    """(N, H, W) bool masks of an image, as `paste_masks_in_image` gives on the CPU.

    Each is sampled in its own box and a pixel around only, on any device, without waiting for the
    device once an instance.

    Args:
        cells: (N, M, M) probabilities.
        boxes: (N, 4) XYXY_ABS in pixels, none of them empty.
        size: (H, W).
        threshold: least probability inside.
    """
    masks = empty_masks(len(cells), size, cells.device)
    for mask, (x0, y0, x1, _), bands in zip(
        masks, pixels_around(boxes, size), _sampled(cells, boxes, size), strict=True
    ):
        for band in bands:
            torch.ge(band, threshold, out=mask[y0 : y0 + len(band), x0:x1])
            y0 += len(band)
    return masks


@torch.no_grad()
def crop_masks(cells: Tensor, boxes: Tensor, size: Size, threshold: float = 0.5) -> CroppedMasks:
    """What `paste_masks` gives, in main memory, of each mask the part that its box reaches."""
    return CroppedMasks(size, _crops(cells, boxes, size, threshold))


def _crops(cells: Tensor, boxes: Tensor, size: Size, threshold: float) -> Iterator[Crop]:
    for (x0, y0, x1, _), bands in zip(
        pixels_around(boxes, size), _sampled(cells, boxes, size), strict=True
    ):
        parts = [(band >= threshold).cpu().numpy() for band in bands]
        pixels = np.concatenate(parts) if parts else np.zeros((0, x1 - x0), dtype=bool)
        yield Crop(y0, x0, pixels)


def _sampled(cells: Tensor, boxes: Tensor, size: Size) -> Iterator[Iterator[Tensor]]:
    """For each mask its probabilities in `pixels_around` its box, some rows at a time."""
    height, width = size
    cells = cells if cells.is_floating_point() else cells.float()
    columns = _places(width, boxes[:, 0], boxes[:, 2]).to(cells.dtype)
    rows = _places(height, boxes[:, 1], boxes[:, 3]).to(cells.dtype)
    for own, row, column, (x0, y0, x1, y1) in zip(
        cells, rows, columns, pixels_around(boxes, size), strict=True
    ):
        yield _bands(own, row[y0:y1], column[x0:x1])


def _bands(cells: Tensor, rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    for part in rows.split(max(_AT_ONCE // max(len(columns), 1), 1)):
        place = torch.stack(torch.meshgrid(columns, part, indexing="xy"), dim=2)
        yield F.grid_sample(cells[None, None], place[None], align_corners=False)[0, 0]


def _places(length: int, start: Tensor, end: Tensor) -> Tensor:
    """(N, length) where pixel centres lie between starts (-1) and ends (1) of boxes."""
    centres = torch.arange(length, dtype=torch.float32, device=start.device) + 0.5
    start, end = start[:, None], end[:, None]
    return (centres - start) / (end - start) * 2 - 1


def empty_masks(number: int, size: Size, device: torch.device) -> Tensor:
    """(number, H, W) False.

    In main memory straight from the system, which are zeros without being filled, and held only
    where something is painted: 20 of 200 MB for a hundred masks of 1024 x 2048. (Of `np.zeros`
    nearly all are held, for numpy asks for pages of 2 MB, the size of one such mask.)
    """
    shape = (number, *size)
    if device.type != "cpu" or not math.prod(shape):
        return torch.zeros(shape, dtype=torch.bool, device=device)
    memory = mmap.mmap(-1, math.prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.from_numpy(np.frombuffer(memory, dtype=bool).reshape(shape))
