"""Weights of open-mmlab/mmdetection's Faster and Mask R-CNN with a ResNet and FPN, for Detectron2.

Of its versions 2 and 3, whose layers are Detectron2's under other names, with the same values:
background is last, deltas are (dx, dy, dw, dh) with deviations 0.1, 0.1, 0.2, 0.2, anchors are not
rounded and begin in the corner of the image. From its published configs, mask-rcnn_r50_fpn.py and
mask-rcnn_r50_fpn_1x_cityscapes.py, and the layers they name.

One thing has no counterpart: of boxes, mmdetection lets none become more than 62.5 times larger or
smaller than its anchor or proposal; Detectron2 none more than 62.5 times larger.

Letters: K thing classes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from d2_cityscapes.convert.files import Conversion, counted, read_content, write_conversion
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.convert.renaming import (
    AFFINE,
    Layer,
    body_layers,
    check_rows,
    count_modules,
    left_behind,
    normed,
    pick_classes,
    rename,
    rows_of,
)
from d2_cityscapes.convert.torchvision_resnet import ResNetBody, find_body
from d2_cityscapes.labels import CITYSCAPES

__all__ = ["CONFIG", "convert_mmdetection_file", "mmdetection_to_detectron2"]

CONFIG = "configs/converted/mmdetection_mask_rcnn_R_50_FPN.yaml"
NUM_COCO = 80
LEVELS = 4

_BODY, _BOX, _MASK = "backbone.", "roi_head.bbox_head.", "roi_head.mask_head."
_RPN = "proposal_generator.rpn_head."
_PREDICTORS = {  # those with rows for each class -> rows of each, further ones
    f"{_BOX}fc_cls": (1, 1),
    f"{_BOX}fc_reg": (4, 0),
    f"{_MASK}conv_logits": (1, 0),
}


def convert_mmdetection_file(
    input: Path, output: Path, *, details: bool = False
) -> tuple[str, ...]:
    """Read a checkpoint of mmdetection, convert it, write another file.

    Its "meta" says what the classes are called; see `mmdetection_to_detectron2` and
    `d2_cityscapes.convert.convert_file`.
    """
    content, weights = read_content(input)
    meta = content.get("meta")
    try:
        found = mmdetection_to_detectron2(weights, meta if isinstance(meta, Mapping) else {})
    except ConversionError as error:
        raise ConversionError(f"{input}: {error}", details=error.details) from error
    return write_conversion(output, found, weights, details=details)


def mmdetection_to_detectron2(
    weights: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None
) -> Conversion:
    """Rename a Faster or Mask R-CNN of mmdetection.

    Args:
        weights: of any ResNet, with or without masks, with or without norms in FPN and heads.
        meta: of the checkpoint, with the names of the classes. The 8 things of Cityscapes in
            another order are put into ours; without names 8 classes are taken for those of its
            CityscapesDataset, whose order is ours. Others stay in their order.

    Raises:
        ConversionError: another network, or one with missing or additional tensors.
    """
    if "bbox_head.fc_cls.weight" in weights:
        raise ConversionError(
            "weights of mmdetection 1, whose background is the first class: make them those of "
            "version 2 by its own tools/model_converters/upgrade_model_version.py"
        )
    body = find_body(weights)
    if not body.prefix.endswith(_BODY):
        raise ConversionError("no backbone.conv1: not a detector of mmdetection")
    root = body.prefix.removesuffix(_BODY)
    present = {name.removeprefix(root): name for name in weights}
    names = rename(
        present,
        [*body_layers(body.names, root), *_layers(present)],
        "mmdetection's Faster or Mask R-CNN with ResNet and FPN",
    )
    sources = {ours: present[theirs] for theirs, ours in names.items()}
    tensors = {ours: weights[source] for ours, source in sources.items()}
    number = _check_classes({theirs: tensors[ours] for theirs, ours in names.items()})
    classes = _class_names(meta or {}, number)
    order = _order(classes)
    for layer, (each, more) in _PREDICTORS.items() if order else ():
        for theirs in (f"{layer}.weight", f"{layer}.bias"):
            if theirs in names and len(tensors[names[theirs]]) == each * number + more:
                rows = [*order, number] if more else order
                tensors[names[theirs]] = pick_classes(tensors[names[theirs]], rows, each)
    return Conversion(
        tensors,
        (
            f"converted {len(tensors)} of {counted(len(weights), 'tensor')}: "
            f"{'Mask' if _has_masks(names) else 'Faster'} R-CNN, {body} with FPN",
            left_behind(name for name in weights if name not in sources.values()),
            *_about(body, names, meta or {}, classes, number, order),
        ),
        _record(classes, number),
        sources,
    )


def _layers(names: Collection[str]) -> Iterator[Layer]:
    """Every layer but the body's."""
    for i in range(LEVELS):
        for theirs, ours in (("lateral_convs", "lateral"), ("fpn_convs", "output")):
            yield from _conv(names, f"neck.{theirs}.{i}", f"backbone.fpn_{ours}{i + 2}")
    yield "rpn_head.rpn_conv", f"{_RPN}conv", AFFINE
    yield "rpn_head.rpn_cls", f"{_RPN}objectness_logits", AFFINE
    yield "rpn_head.rpn_reg", f"{_RPN}anchor_deltas", AFFINE
    for k in range(count_modules(names, f"{_BOX}shared_convs.", least=0)):
        yield from _conv(names, f"{_BOX}shared_convs.{k}", f"roi_heads.box_head.conv{k + 1}")
    for k in range(count_modules(names, f"{_BOX}shared_fcs.")):
        yield f"{_BOX}shared_fcs.{k}", f"roi_heads.box_head.fc{k + 1}", AFFINE
    yield f"{_BOX}fc_cls", "roi_heads.box_predictor.cls_score", AFFINE
    yield f"{_BOX}fc_reg", "roi_heads.box_predictor.bbox_pred", AFFINE
    if _has_masks(names):
        for k in range(count_modules(names, f"{_MASK}convs.")):
            yield from _conv(names, f"{_MASK}convs.{k}", f"roi_heads.mask_head.mask_fcn{k + 1}")
        yield f"{_MASK}upsample", "roi_heads.mask_head.deconv", AFFINE
        yield f"{_MASK}conv_logits", "roi_heads.mask_head.predictor", AFFINE


def _conv(names: Collection[str], theirs: str, ours: str) -> Iterator[Layer]:
    """mmcv's ConvModule."""
    return normed(names, f"{theirs}.conv", f"{theirs}.bn", ours)


def _has_masks(names: Collection[str]) -> bool:
    return any(name.startswith(_MASK) for name in names)


def _check_classes(tensors: Mapping[str, Tensor]) -> int:
    """K, on which the predictors must agree, as those of the RPN on its anchors."""
    number = rows_of(tensors[f"{_BOX}fc_cls.weight"]) - 1
    expected = {layer: each * number + more for layer, (each, more) in _PREDICTORS.items()}
    agnostic = {f"{_BOX}fc_reg": 4, f"{_MASK}conv_logits": 1}
    for layer, rows in agnostic.items():
        name = f"{layer}.weight"
        if name in tensors and rows_of(tensors[name]) == rows:
            expected[layer] = rows
    check_rows(tensors, expected, f"{number} classes and background")
    anchors = rows_of(tensors["rpn_head.rpn_cls.weight"])
    check_rows(tensors, {"rpn_head.rpn_reg": 4 * anchors}, counted(anchors, "anchor"))
    return number


def _class_names(meta: Mapping[str, Any], number: int) -> list[str]:
    """The names that the checkpoint gives its classes; [] where it gives none."""
    own = meta.get("dataset_meta")
    for place in (own if isinstance(own, Mapping) else {}, meta):
        for key in ("classes", "CLASSES"):
            names = place.get(key)
            if isinstance(names, Sequence) and len(names) == number:
                return [str(name) for name in names]
    return []


def _order(classes: Sequence[str]) -> list[int]:
    """Which class becomes which, where they are the things of Cityscapes in another order."""
    things = [c.name for c in CITYSCAPES.things]
    if sorted(classes) != sorted(things) or list(classes) == things:
        return []
    return [list(classes).index(name) for name in things]


def _record(classes: Sequence[str], number: int) -> dict[str, Any] | None:
    things = [c.name for c in CITYSCAPES.things]
    if sorted(classes) == sorted(things) or (not classes and number == len(things)):
        return {"table": CITYSCAPES.name, "things": things}
    if classes:
        return {"table": "COCO" if number == NUM_COCO else "mmdetection", "things": list(classes)}
    return None


def _about(
    body: ResNetBody,
    names: Collection[str],
    meta: Mapping[str, Any],
    classes: Sequence[str],
    number: int,
    order: Sequence[int],
) -> Iterator[str]:
    """What became of the classes, and what the config must be like."""
    if order:
        yield f"classes put into the order of Cityscapes: they were {', '.join(classes)}"
    elif classes:
        yield f"{number} classes, by its meta: {', '.join(classes[:8])}" + ", ..." * (number > 8)
    elif number == len(CITYSCAPES.things):
        yield "8 classes without names, taken for those of its CityscapesDataset"
    else:
        yield f"{number} classes without names, which stay in their order"
    keys = [body.keys] if body.keys else []
    if not _has_masks(names):
        keys.append("MODEL.MASK_ON False")
    if number != len(CITYSCAPES.things):
        keys.append(f"MODEL.ROI_HEADS.NUM_CLASSES {number}")
    if any("neck" in name and ".bn." in name for name in names):
        keys.append("MODEL.FPN.NORM BN")
    config = str(meta.get("config") or meta.get("cfg") or "")
    if "'caffe'" in config or '"caffe"' in config:
        keys.append(
            "MODEL.RESNETS.STRIDE_IN_1X1 True INPUT.FORMAT BGR MODEL.PIXEL_MEAN "
            '"[103.53, 116.28, 123.675]" MODEL.PIXEL_STD "[1.0, 1.0, 1.0]", as its style is caffe'
        )
    yield f"predicts as in mmdetection with {CONFIG}" + (f" and {' '.join(keys)}" if keys else "")
    if number == NUM_COCO:
        yield "80 classes, COCO's: coco-to-cityscapes makes them those of Cityscapes"
