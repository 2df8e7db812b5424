"""torchvision's DeepLabv3 for `DeepLabV3Segmentor`, which has its names.

Letters: K channels of the heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2_cityscapes.convert.files import STEPS, Conversion, convert_weights, counted, mismatch
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.convert.picked_rows import pick_rows
from d2_cityscapes.convert.renaming import left_behind, rows_of
from d2_cityscapes.convert.torchvision_resnet import find_body
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import MAPPED
from d2_cityscapes.labels.rows import class_rows

__all__ = ["convert_torchvision_segmentor_file", "torchvision_to_segmentor"]

CONFIG = "configs/semantic/deeplabv3_R_50_768x1024_semantic19.yaml"
DEPTHS = (50, 101)
VOC_CLASSES = 21
VOC_NAMES = {"motorcycle": "motorbike"}  # of Cityscapes -> of VOC, where they differ
_BACKBONE, _AUX = "backbone.", "aux_classifier."


def convert_torchvision_segmentor_file(
    input: Path, output: Path, *, seed: int = 0, details: bool = False
) -> tuple[str, ...]:
    """See `torchvision_to_segmentor` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(
        partial(torchvision_to_segmentor, seed=seed), input, output, details=details
    )


def torchvision_to_segmentor(weights: Mapping[str, Tensor], *, seed: int = 0) -> Conversion:
    """A whole file for `DeepLabV3Segmentor`, whose scores are torchvision's.

    The auxiliary head, which acts in training with MODEL.DEEPLAB.AUX_LOSS_WEIGHT only, begins at
    random where the file has none. Of torchvision's published 21 classes of VOC both heads keep the
    rows of those that Cityscapes has too; its others begin at random.

    Args:
        weights: of ``deeplabv3_resnet50`` or ``deeplabv3_resnet101``.
        seed: of random numbers.

    Raises:
        ConversionError: another network, or one with missing, additional or differently shaped
            tensors.
    """
    body = find_body(weights)
    if not body.prefix.endswith(_BACKBONE) or body.depth not in DEPTHS or body.keys.count("WIDTH"):
        raise ConversionError(
            f"{body}, but not in DeepLabv3 of torchvision with a ResNet-50 or 101"
        )
    root = body.prefix.removesuffix(_BACKBONE)
    own = {name.removeprefix(root): name for name in weights if not name.endswith(STEPS)}
    if "classifier.4.weight" not in own:
        raise ConversionError("no classifier.4.weight: not a DeepLabv3 of torchvision")
    rows = rows_of(weights[own["classifier.4.weight"]])
    expected = _expected(body.depth, rows)
    _check(expected, {name: weights[source] for name, source in own.items()})
    lines, record = [], None
    tensors = {name: weights[source] for name, source in own.items()}
    made = [name for name in expected if name not in own]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tensors |= _random_head(rows) if made else {}
    if rows == VOC_CLASSES:
        tensors |= _of_cityscapes(tensors, torch.Generator().manual_seed(seed))
        taken = ", ".join(name for name in _names() if _voc_row(name) is not None)
        lines.append(f"classes: rows of {taken} taken from VOC; the others at random (seed {seed})")
        record = {"table": CITYSCAPES.name, "classes": _names(), MAPPED: list(lines)}
    else:
        lines.append(f"{rows} classes, which stay in their order")
    return Conversion(
        tensors,
        (
            f"converted {len(own)} of {counted(len(weights), 'tensor')}: DeepLabv3, {body}",
            left_behind(name for name in weights if name.endswith(STEPS)),
            *(["no auxiliary head in it: random"] if made else []),
            *lines,
            f"its network is that of {CONFIG}" + (f" with {body.keys}" if body.keys else ""),
        ),
        record,
        {name: source for name, source in own.items() if source != name},
    )


def _expected(depth: int, rows: int) -> dict[str, tuple[int, ...]]:
    from torchvision.models import segmentation

    build = getattr(segmentation, f"deeplabv3_resnet{depth}")
    with torch.device("meta"):
        model = build(weights=None, weights_backbone=None, num_classes=rows, aux_loss=True)
    return {n: tuple(t.shape) for n, t in model.state_dict().items() if not n.endswith(STEPS)}


def _check(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> None:
    has_aux = any(name.startswith(_AUX) for name in found)
    problems = [
        *(
            f"missing: {name}"
            for name in expected.keys() - found.keys()
            if has_aux or not name.startswith(_AUX)
        ),
        *(f"unknown: {name}" for name in found.keys() - expected.keys()),
        *(
            f"another shape: {name} is {tuple(found[name].shape)}, not {expected[name]}"
            for name in expected.keys() & found.keys()
            if tuple(found[name].shape) != expected[name]
        ),
    ]
    if problems:
        raise mismatch("not torchvision's DeepLabv3", sorted(problems))


def _random_head(rows: int) -> dict[str, Tensor]:
    """torchvision's auxiliary head as it begins."""
    from torchvision.models.segmentation.fcn import FCNHead

    state = FCNHead(1024, rows).state_dict()
    return {_AUX + name: tensor for name, tensor in state.items() if not name.endswith(STEPS)}


def _of_cityscapes(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    picked = [_voc_row(name) for name in _names()]
    return {
        name: pick_rows(name, tensors[name], rows, picked, VOC_CLASSES, generator)
        for name, rows in class_rows(tensors, "classes")
        if rows.fits(tensors[name], VOC_CLASSES)
    }


def _names() -> list[str]:
    return [c.name for c in CITYSCAPES.classes]


def _voc_row(name: str) -> int | None:
    """The row of a class of Cityscapes among those of VOC."""
    from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

    categories = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    name = VOC_NAMES.get(name, name)
    return categories.index(name) if name in categories else None
