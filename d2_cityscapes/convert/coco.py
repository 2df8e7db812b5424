"""Detectron2's COCO detectors with their heads for the 8 Cityscapes classes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2_cityscapes.convert.files import (
    Conversion,
    convert_weights,
    counted,
)
from d2_cityscapes.convert.kinds import RIDERS, ConversionError
from d2_cityscapes.convert.picked_rows import pick_rows
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.rows import class_rows

__all__ = ["coco_to_cityscapes", "convert_coco_file"]

NUM_COCO = 80
NEEDED = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
# Cityscapes class -> COCO's contiguous id in Detectron2; "rider" has no counterpart
COCO_ID = {
    "person": 0,
    "car": 2,
    "truck": 7,
    "bus": 5,
    "train": 6,
    "motorcycle": 3,
    "bicycle": 1,
}


def convert_coco_file(
    input: Path, output: Path, *, rider: str = "random", seed: int = 0, details: bool = False
) -> tuple[str, ...]:
    """See `coco_to_cityscapes` and `d2_cityscapes.convert.convert_file`."""
    convert = partial(coco_to_cityscapes, rider=rider, seed=seed)
    return convert_weights(convert, input, output, details=details)


def coco_to_cityscapes(
    weights: Mapping[str, Tensor], *, rider: str = "random", seed: int = 0
) -> Conversion:
    """Pick the rows of the 7 classes that COCO and Cityscapes share, and make those of rider.

    For any input, scores among the shared classes and background, box deltas and mask logits of the
    shared classes are COCO's. Every tensor without rows for classes stays as it is.

    Args:
        weights: of a Faster or Mask R-CNN of Detectron2 with COCO's 80 classes.
        rider: one of `RIDERS`.
        seed: of its random numbers.

    Raises:
        ConversionError: another architecture or another number of classes.
    """
    if rider not in RIDERS:
        raise ConversionError(f"rider {rider!r}: one of {', '.join(RIDERS)}")
    generator = torch.Generator().manual_seed(seed)
    mapped, agnostic = {}, []
    for layer in NEEDED:
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name not in weights:
                raise ConversionError(
                    f"no {name}: not a Faster or Mask R-CNN in Detectron2's names"
                )
    like = COCO_ID["person"] if rider == "person" else None
    picked = [COCO_ID.get(thing.name, like) for thing in CITYSCAPES.things]
    for name, rows in class_rows(weights, "things"):
        if rows.is_agnostic(weights[name]):
            agnostic.append(name)
        else:
            mapped[name] = pick_rows(
                name,
                weights[name],
                rows,
                picked,
                NUM_COCO,
                generator,
                like_others=rider == "blob_stats",
            )
    tensors = {name: mapped.get(name, tensor) for name, tensor in weights.items()}
    report = [
        f"rows of {len(COCO_ID)} of {len(CITYSCAPES.things)} classes taken from COCO in "
        f"{counted(len(mapped), 'tensor')}: {', '.join(COCO_ID)}",
        f"rider: {rider}, {RIDERS[rider]}" + (f" (seed {seed})" if rider != "person" else ""),
        f"unchanged: {counted(len(weights) - len(mapped), 'tensor')}",
    ]
    if agnostic:
        report.append(f"the same for all classes, so among them: {', '.join(agnostic)}")
    things = {"table": CITYSCAPES.name, "things": [c.name for c in CITYSCAPES.things]}
    return Conversion(tensors, tuple(report), things)
