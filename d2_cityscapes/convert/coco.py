"""Detectron2's COCO detectors with their heads for the 8 Cityscapes classes.

Letters: K classes, in the order of the dataset's contiguous thing ids; background is row K of the
classifier and has no row elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from d2_cityscapes.labels import CITYSCAPES

__all__ = ["coco_to_cityscapes", "convert_coco_file"]

NUM_COCO = 80
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
# What the rows of "rider" become.


@dataclass(frozen=True)
class _Layer:
    """A layer with rows for each class, all under "roi_heads".

    Attributes:
        rows: rows for each class.
        background: whether one more class, the background, follows.
        std: of a new class in Detectron2.
        agnostic: rows of a layer that does not know classes; it needs no conversion.
        needed: whether every detector has it.
    """

    rows: int
    background: bool
    std: float
    agnostic: int = 0
    needed: bool = True


LAYERS = {
    "roi_heads.box_predictor.cls_score": _Layer(1, background=True, std=0.01),
    "roi_heads.box_predictor.bbox_pred": _Layer(4, background=False, std=0.001, agnostic=4),
    "roi_heads.mask_head.predictor": _Layer(
        1, background=False, std=0.001, agnostic=1, needed=False
    ),
}


def convert_coco_file(
    input: Path, output: Path, *, rider: str = "random", seed: int = 0
) -> tuple[str, ...]:
    """See `coco_to_cityscapes` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(partial(coco_to_cityscapes, rider=rider, seed=seed), input, output)


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
    for name, layer in LAYERS.items():
        for tensor in (f"{name}.weight", f"{name}.bias"):
            if tensor not in weights:
                if layer.needed:
                    raise ConversionError(
                        f"no {tensor}: not a Faster or Mask R-CNN in Detectron2's names"
                    )
            elif weights[tensor].shape[:1] == (layer.agnostic,):
                agnostic.append(tensor)
            else:
                mapped[tensor] = _pick_rows(tensor, weights[tensor], layer, rider, generator)
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


def _pick_rows(
    name: str, coco: Tensor, layer: _Layer, rider: str, generator: torch.Generator
) -> Tensor:
    expected = (NUM_COCO + layer.background) * layer.rows
    if coco.shape[:1] != (expected,):
        raise ConversionError(
            f"{name} is {tuple(coco.shape)}, but a COCO model of Detectron2 has {expected} rows"
        )
    classes = coco.reshape(-1, layer.rows, *coco.shape[1:])  # (K [+ 1], rows, ...)
    picked = []
    for thing in CITYSCAPES.things:
        if thing.name in COCO_ID:
            picked.append(classes[COCO_ID[thing.name]])
        else:
            picked.append(_rider_rows(name, classes, layer, rider, generator))
    if layer.background:
        picked.append(classes[NUM_COCO])
    return torch.cat(picked)


def _rider_rows(
    name: str, classes: Tensor, layer: _Layer, rider: str, generator: torch.Generator
) -> Tensor:
    """(rows, ...) of one class."""
    if rider == "person":
        return classes[COCO_ID["person"]]
    # always drawn, so that another choice of one tensor leaves the numbers of the next alone
    noise = torch.randn(classes.shape[1:], generator=generator, dtype=torch.float32)
    if rider == "blob_stats":
        values = classes.float()
        rows = values.mean() + values.std(correction=0) * noise
    elif name.endswith(".bias"):
        rows = torch.zeros_like(noise)
    else:
        rows = layer.std * noise
    return rows.to(classes.dtype)
