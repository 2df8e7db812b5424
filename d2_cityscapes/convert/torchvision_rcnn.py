"""torchvision's Faster and Mask R-CNN with a ResNet and FPN, of both versions, for Detectron2.

Source: torchvision.models.detection, ``maskrcnn_resnet50_fpn`` and ``_v2``, ``fasterrcnn_...``. The
layers are Detectron2's under other names; two things mean something else by the same number:

* background is class 0 of the predictors there, and the last one in Detectron2, where it has no
  box and no mask;
* torchvision's published weights of version 1 have frozen norms without an epsilon; Detectron2 adds
  1e-5 to each variance. The factor between the two goes into the norms' weights.

Anchors, pooling and resizing are a matter of the config, see `CONFIGS`.

Letters: K thing classes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from d2_cityscapes.convert.files import STEPS, Conversion, convert_weights, counted
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

__all__ = ["CONFIGS", "convert_torchvision_rcnn_file", "torchvision_rcnn_to_detectron2"]

# The configs that predict as torchvision does, by whether the FPN has norms (version 2).
CONFIGS = {
    False: "configs/converted/torchvision_mask_rcnn_R_50_FPN.yaml",
    True: "configs/converted/torchvision_mask_rcnn_R_50_FPN_v2.yaml",
}
EPSILON = 1e-5  # of Detectron2's norms, and of torchvision's but those named above
COCO_ROWS = 91  # ids of COCO from 0, background, to 90, of which 10 are not used
NUM_COCO = 80
LEVELS = 4

_BODY, _FPN, _RPN, _ROI = "backbone.body.", "backbone.fpn.", "rpn.head.", "roi_heads."
_PREDICTORS = {  # those with rows for each class -> rows of each
    f"{_ROI}box_predictor.cls_score": 1,
    f"{_ROI}box_predictor.bbox_pred": 4,
    f"{_ROI}mask_predictor.mask_fcn_logits": 1,
}


def convert_torchvision_rcnn_file(
    input: Path, output: Path, *, norm_epsilon: float | None = None, details: bool = False
) -> tuple[str, ...]:
    """See `torchvision_rcnn_to_detectron2` and `d2_cityscapes.convert.convert_file`."""
    convert = partial(torchvision_rcnn_to_detectron2, norm_epsilon=norm_epsilon)
    return convert_weights(convert, input, output, details=details)


def torchvision_rcnn_to_detectron2(
    weights: Mapping[str, Tensor], *, norm_epsilon: float | None = None
) -> Conversion:
    """Rename a detector of torchvision, and adapt its values.

    Proposals and detections are torchvision's to rounding under the config of `CONFIGS` that the
    report names, for the same pixels.

    Args:
        weights: of any ResNet, ResNeXt or Wide ResNet, with or without masks; in the names of today
            or of files from before torchvision 0.13. With COCO's 91 rows the 80 classes stay that
            it uses, in Detectron2's order; otherwise all stay in their order, background last.
        norm_epsilon: that of the norms. None: 0 for frozen norms with COCO's 91 rows, which is what
            torchvision publishes and how it uses it, else 1e-5.

    Raises:
        ConversionError: another network, or one with missing or additional tensors.
    """
    body = find_body(weights)
    if not body.prefix.endswith(_BODY):
        raise ConversionError(
            "a ResNet, but no Faster or Mask R-CNN of torchvision around it (backbone.body, "
            "backbone.fpn): torchvision-resnet converts the ResNet alone"
        )
    root = body.prefix.removesuffix(_BODY)
    present = {_name_of_today(name.removeprefix(root)): name for name in weights}
    layers = [*body_layers(body.names, root), *_layers(present)]
    names = rename(present, layers, "torchvision's Faster or Mask R-CNN with ResNet and FPN")
    sources = {ours: present[theirs] for theirs, ours in names.items()}
    tensors = {ours: weights[source] for ours, source in sources.items()}
    rows = _check_classes({theirs: tensors[ours] for theirs, ours in names.items()})
    kept = _coco_rows() if rows == COCO_ROWS else range(1, rows)
    for layer, each in _PREDICTORS.items():
        for theirs in (f"{layer}.weight", f"{layer}.bias"):
            if theirs in names:
                picked = [*kept, 0] if layer.endswith("cls_score") else kept
                tensors[names[theirs]] = pick_classes(tensors[names[theirs]], picked, each)
    epsilon = _epsilon(present, rows) if norm_epsilon is None else norm_epsilon
    if epsilon != EPSILON:
        tensors |= _as_with_epsilon(tensors, epsilon)
    return Conversion(
        tensors,
        (
            f"converted {len(tensors)} of {counted(len(weights), 'tensor')}: "
            f"{_network(body, names)}",
            left_behind(name for name in weights if name not in sources.values()),
            "background is the last class now"
            + (", and ids that COCO does not use are left out" if rows == COCO_ROWS else ""),
            *_about_norms(epsilon),
            *_about_config(body, names, len(kept)),
        ),
        {"table": "COCO", "things": _coco_names()} if rows == COCO_ROWS else None,
        sources,
    )


def _name_of_today(name: str) -> str:
    """Of a name from before torchvision 0.13, when layers of one convolution had no numbers."""
    module, _, tensor = name.rpartition(".")
    above, _, last = module.rpartition(".")
    if above in (f"{_FPN}inner_blocks", f"{_FPN}layer_blocks") and last.isdecimal():
        return f"{module}.0.{tensor}"
    if module == f"{_RPN}conv":
        return f"{module}.0.0.{tensor}"
    if above == f"{_ROI}mask_head" and last.startswith("mask_fcn") and last[8:].isdecimal():
        return f"{above}.{int(last[8:]) - 1}.0.{tensor}"
    return name


def _layers(names: Collection[str]) -> Iterator[Layer]:
    """Every layer but the body's."""
    for i in range(LEVELS):
        yield from _conv(names, f"{_FPN}inner_blocks.{i}", f"backbone.fpn_lateral{i + 2}")
        yield from _conv(names, f"{_FPN}layer_blocks.{i}", f"backbone.fpn_output{i + 2}")
    ours = "proposal_generator.rpn_head."
    several = count_modules(names, f"{_RPN}conv.")
    for k in range(several):
        place = f"{ours}conv" if several == 1 else f"{ours}conv.conv{k}"
        yield f"{_RPN}conv.{k}.0", place, AFFINE
    yield f"{_RPN}cls_logits", f"{ours}objectness_logits", AFFINE
    yield f"{_RPN}bbox_pred", f"{ours}anchor_deltas", AFFINE
    yield from _box_head(names)
    for name in ("cls_score", "bbox_pred"):
        yield f"{_ROI}box_predictor.{name}", f"{_ROI}box_predictor.{name}", AFFINE
    if _has_masks(names):
        for k in range(count_modules(names, f"{_ROI}mask_head.")):
            yield from _conv(names, f"{_ROI}mask_head.{k}", f"{_ROI}mask_head.mask_fcn{k + 1}")
        yield f"{_ROI}mask_predictor.conv5_mask", f"{_ROI}mask_head.deconv", AFFINE
        yield f"{_ROI}mask_predictor.mask_fcn_logits", f"{_ROI}mask_head.predictor", AFFINE


def _box_head(names: Collection[str]) -> Iterator[Layer]:
    """Two linear layers, or convolutions and linear layers in one sequence."""
    head = f"{_ROI}box_head."
    numbers = range(count_modules(names, head, least=0))
    if not numbers:
        yield f"{head}fc6", f"{head}fc1", AFFINE
        yield f"{head}fc7", f"{head}fc2", AFFINE
    convolutions = [i for i in numbers if f"{head}{i}.0.weight" in names]
    for k, i in enumerate(convolutions, start=1):
        yield from _conv(names, f"{head}{i}", f"{head}conv{k}")
    linear = [i for i in numbers if f"{head}{i}.weight" in names]
    for k, i in enumerate(linear, start=1):
        yield f"{head}{i}", f"{head}fc{k}", AFFINE


def _conv(names: Collection[str], theirs: str, ours: str) -> Iterator[Layer]:
    """torchvision's Conv2dNormActivation: ".0" is the convolution, ".1" its norm if it has one."""
    return normed(names, f"{theirs}.0", f"{theirs}.1", ours)


def _has_masks(names: Collection[str]) -> bool:
    return any(name.startswith(f"{_ROI}mask_") for name in names)


def _check_classes(tensors: Mapping[str, Tensor]) -> int:
    """K + 1, on which the predictors must agree, as those of the RPN on its anchors."""
    rows = rows_of(tensors[f"{_ROI}box_predictor.cls_score.weight"])
    why = f"{rows} classes, background among them,"
    check_rows(tensors, {layer: each * rows for layer, each in _PREDICTORS.items()}, why)
    anchors = rows_of(tensors[f"{_RPN}cls_logits.weight"])
    check_rows(tensors, {f"{_RPN}bbox_pred": 4 * anchors}, counted(anchors, "anchor"))
    if rows < 2:
        raise ConversionError("box_predictor.cls_score has no class but background")
    return rows


def _epsilon(names: Collection[str], rows: int) -> float:
    trained = any(name.startswith(_BODY) and name.endswith(STEPS) for name in names)
    return 0.0 if rows == COCO_ROWS and not trained else EPSILON


def _as_with_epsilon(tensors: Mapping[str, Tensor], epsilon: float) -> dict[str, Tensor]:
    """Weights of norms that do with `EPSILON` what they did with another one."""
    changed = {}
    for name, variance in tensors.items():
        norm, _, kind = name.rpartition(".")
        if kind != "running_var":
            continue
        weight = tensors[f"{norm}.weight"]
        wide = variance.double()
        factor = ((wide + EPSILON) / (wide + epsilon)).sqrt()
        if not factor.isfinite().all():
            raise ConversionError(
                f"{name} has variances of 0 or below, which a norm without epsilon cannot have: "
                f"give --norm-epsilon, {EPSILON} for models that torchvision trained"
            )
        changed[f"{norm}.weight"] = (weight.double() * factor).to(weight.dtype)
    return changed


def _network(body: ResNetBody, names: Mapping[str, str]) -> str:
    """In words; `names` are theirs -> ours."""
    modules = {ours.rpartition(".")[0] for ours in names.values()}
    box_head = f"{_ROI}box_head."
    kind = "Mask" if _has_masks(names) else "Faster"
    parts = {"convolution": r"conv\d+", "linear layer": r"fc\d+"}
    numbers = [
        counted(sum(re.fullmatch(re.escape(box_head) + part, m) is not None for m in modules), noun)
        for noun, part in parts.items()
    ]
    return (
        f"{kind} R-CNN, {body} with FPN, "
        f"{counted(count_modules(names, f'{_RPN}conv.'), 'convolution')} in the RPN, box head of "
        f"{' and '.join(numbers)}"
    )


def _about_norms(epsilon: float) -> Iterator[str]:
    if epsilon != EPSILON:
        yield (
            f"norms are taken to have an epsilon of {epsilon:g} (--norm-epsilon), and have "
            f"Detectron2's {EPSILON:g} in their weights now"
        )


def _about_config(body: ResNetBody, names: Collection[str], classes: int) -> Iterator[str]:
    """What the config must be like."""
    config = CONFIGS[f"{_FPN}inner_blocks.0.1.weight" in names]
    keys = [body.keys] if body.keys else []
    if not _has_masks(names):
        keys.append("MODEL.MASK_ON False")
    if classes != 8:
        keys.append(f"MODEL.ROI_HEADS.NUM_CLASSES {classes}")
    yield f"predicts as in torchvision with {config}" + (f" and {' '.join(keys)}" if keys else "")
    if classes == NUM_COCO:
        yield "80 classes of COCO: coco-to-cityscapes makes them those of Cityscapes"


def _coco_categories() -> list[str]:
    from torchvision.models.detection import MaskRCNN_ResNet50_FPN_Weights

    return MaskRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def _coco_rows() -> list[int]:
    return [i for i, name in enumerate(_coco_categories()) if i > 0 and name != "N/A"]


def _coco_names() -> list[str]:
    categories = _coco_categories()
    return [categories[i] for i in _coco_rows()]
