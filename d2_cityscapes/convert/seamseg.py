"""Weights of the reference implementation of Seamless Scene Segmentation, mapillary/seamseg.

Its snapshots are {"config", "state_dict": {"body", "rpn_head", "roi_head", "sem_head"}, ...}. Names
change, and where the two mean different things by the same number, so do values:

* a norm (iABN) multiplies by |weight| + 1e-5, a batch norm by its weight;
* background is class 0 of the box classifier there, the last class in Detectron2;
* boxes are (y, x), so that deltas are (dy, dx, dh, dw) there, (dx, dy, dw, dh) in Detectron2.

Letters: A anchors of a cell, K thing classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2_cityscapes.convert.files import STEPS, Conversion, convert_weights, counted
from d2_cityscapes.convert.kinds import ConversionError
from d2_cityscapes.convert.renaming import AFFINE, NORM, WEIGHT, Layer, count_modules, rename
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.record import class_record

__all__ = ["convert_seamseg_file", "seamseg_to_detectron2"]

CONFIG = "configs/panoptic/seamless_R_50_FPN.yaml"
NORM_EPSILON = 1e-5  # which iABN adds to the absolute weight

_ROI = "roi_heads."
_HIDDEN = {  # of a MiniDL: seamseg's name -> ours, tensors
    "conv1_3x3": ("branch_local", WEIGHT),
    "conv1_dil": ("branch_dilated", WEIGHT),
    "conv1_glb": ("branch_context", WEIGHT),
    "bn1": ("branch_norm", NORM),
    "conv2": ("fuse", WEIGHT),
    "bn2": ("fuse_norm", NORM),
}
_PREDICTORS = {
    "rpn_head.conv_obj": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.conv_bbx": "proposal_generator.rpn_head.anchor_deltas",
    "roi_head.roi_cls": f"{_ROI}box_predictor.cls_score",
    "roi_head.roi_bbx": f"{_ROI}box_predictor.bbox_pred",
    "roi_head.roi_msk": f"{_ROI}mask_head.predictor",
    "sem_head.conv_sem": "sem_seg_head.predictor",
}


def convert_seamseg_file(input: Path, output: Path, *, details: bool = False) -> tuple[str, ...]:
    """See `seamseg_to_detectron2` and `d2_cityscapes.convert.convert_file`."""
    return convert_weights(seamseg_to_detectron2, input, output, details=details)


def seamseg_to_detectron2(weights: Mapping[str, Tensor]) -> Conversion:
    """Rename seamseg's panoptic network to a `SeamlessPanoptic`, and adapt its values.

    Args:
        weights: by part and name, e.g. "body.fpn.lateral.0.conv.weight"; any ResNet, any number of
            extra levels and of classes. Classes stay in the order of the training.

    Raises:
        ConversionError: another network, or one with missing or additional tensors.
    """
    names = rename(weights, _layers(weights), "seamseg's panoptic network")
    steps = [name for name in weights if name.endswith(STEPS)]
    _check_classes(weights)
    tensors = {ours: _value(theirs, ours, weights[theirs]) for theirs, ours in names.items()}
    statistics = ("running_mean", "running_var")
    parameters = sum(t.numel() for n, t in tensors.items() if not n.endswith(statistics))
    return Conversion(
        tensors,
        (
            f"converted {len(tensors)} of {counted(len(weights), 'tensor')}: "
            f"{parameters:,} parameters",
            f"left behind: {f'{STEPS} ({len(steps)})' if steps else 'nothing'}",
            *_about(weights),
        ),
        class_record(CITYSCAPES) if _of_cityscapes(weights) else None,
        {ours: theirs for theirs, ours in names.items()},
    )


def _layers(weights: Mapping[str, Tensor]) -> Iterator[Layer]:
    """Every layer of the network, as large as the weights say it is."""
    yield from _body_layers(weights)
    fpn = "body.fpn."
    for i in range(count_modules(weights, f"{fpn}lateral.")):
        yield from _normed(f"{fpn}lateral.{i}.conv", f"backbone.fpn_lateral{i + 2}")
        yield from _normed(f"{fpn}output.{i}.conv", f"backbone.fpn_output{i + 2}")
    for i in range(count_modules(weights, f"{fpn}extra.", least=0)):
        yield from _normed(f"{fpn}extra.{i}.conv", f"backbone.top_block.p{i + 6}")
    yield from _normed("rpn_head.conv1", "proposal_generator.rpn_head.conv")
    for k in (1, 2):
        yield from _normed(f"roi_head.fc.fc{k}", f"{_ROI}box_head.fc{k}")
    for k in range(1, 5):
        yield from _normed(f"roi_head.conv.conv{k}", f"{_ROI}mask_head.mask_fcn{k}")
    yield from _normed("roi_head.conv.conv_up", f"{_ROI}mask_head.deconv")
    for i in range(count_modules(weights, "sem_head.output.")):
        for theirs, (ours, tensors) in _HIDDEN.items():
            yield f"sem_head.output.{i}.{theirs}", f"sem_seg_head.levels.p{i + 2}.{ours}", tensors
    for theirs, ours in _PREDICTORS.items():
        yield theirs, ours, AFFINE


def _body_layers(weights: Mapping[str, Tensor]) -> Iterator[Layer]:
    body, ours = "body.backbone.", "backbone.bottom_up."
    yield from _normed(f"{body}mod1.conv1", f"{ours}stem.conv1")
    convolutions = 3 if f"{body}mod2.block1.convs.conv3.weight" in weights else 2
    for stage in range(2, 6):
        for i in range(count_modules(weights, f"{body}mod{stage}.block", first=1)):
            block = f"{body}mod{stage}.block{i + 1}."
            for k in range(1, convolutions + 1):
                yield from _normed(f"{block}convs.conv{k}", f"{ours}res{stage}.{i}.conv{k}")
            if f"{block}proj_conv.weight" in weights:
                yield from _normed(f"{block}proj_conv", f"{ours}res{stage}.{i}.shortcut")


def _normed(theirs: str, ours: str) -> tuple[Layer, Layer]:
    """A layer without bias, and its norm: "fc1" and "bn1", "conv_up" and "bn_up"."""
    above, _, name = theirs.rpartition(".")
    norm = name.replace("conv", "bn").replace("fc", "bn")
    return (theirs, ours, WEIGHT), (f"{above}.{norm}", f"{ours}.norm", NORM)


def _value(theirs: str, ours: str, tensor: Tensor) -> Tensor:
    module = theirs.rpartition(".")[0]
    if ours.endswith("norm.weight"):
        return tensor.abs() + NORM_EPSILON
    if module == "roi_head.roi_cls":
        return torch.cat([tensor[1:], tensor[:1]])
    if module in ("rpn_head.conv_bbx", "roi_head.roi_bbx"):  # 4 deltas of each anchor or class
        return tensor.reshape(-1, 4, *tensor.shape[1:])[:, [1, 0, 3, 2]].reshape(tensor.shape)
    return tensor


def _check_classes(weights: Mapping[str, Tensor]) -> None:
    """The predictors must agree on A and K."""
    rows = {name: len(weights[f"{name}.weight"]) for name in _PREDICTORS}
    things = rows["roi_head.roi_cls"] - 1
    expected = {
        "rpn_head.conv_bbx": 4 * rows["rpn_head.conv_obj"],
        "roi_head.roi_bbx": 4 * things,
        "roi_head.roi_msk": things,
    }
    for name, number in expected.items():
        if rows[name] != number:
            raise ConversionError(
                f"{name} has {rows[name]} rows; with {rows['rpn_head.conv_obj']} anchors and "
                f"{things} thing classes it has {number}"
            )


def _of_cityscapes(weights: Mapping[str, Tensor]) -> bool:
    """By their numbers: seamseg packs the classes of Cityscapes in its order."""
    counts = len(weights["sem_head.conv_sem.weight"]), len(weights["roi_head.roi_msk.weight"])
    return counts == (len(CITYSCAPES.classes), len(CITYSCAPES.things))


def _about(weights: Mapping[str, Tensor]) -> Iterator[str]:
    """What the config must be like."""
    classes = len(weights["sem_head.conv_sem.weight"])
    things = len(weights["roi_head.roi_msk.weight"])
    anchors = len(weights["rpn_head.conv_obj.weight"])
    levels = count_modules(weights, "body.fpn.extra.", least=0)
    yield (
        f"{classes} classes, {things} of them things; {anchors} anchors of a cell; "
        f"MODEL.FPN.EXTRA_LEVELS {levels}"
    )
    if _of_cityscapes(weights):
        yield f"predicts as it is with {CONFIG}, which has the order of its anchors"
    else:
        yield (
            f"not the {len(CITYSCAPES.classes)} classes of Cityscapes, {len(CITYSCAPES.things)} of "
            f"them things: with {CONFIG} training begins from all but the layers that predict"
        )
