"""Values of Detectron2's own keys that nothing can be built from, or that would act as another.

Keys of this package are checked where they act; an unknown key or a value of another type is found
when the config is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode

from d2_cityscapes.config import model_tasks, value_of
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.labels import VOID_TRAIN_ID

__all__ = ["check_values"]

_NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
_SEED_END = 2**31  # numpy's generators take no more, with the rank added


class _Rule(NamedTuple):
    key: str
    allowed: str
    holds: Callable[[Any], bool]


def check_values(cfg: CfgNode, *, train: bool = True) -> None:
    """Refuse a wrong value of one of Detectron2's keys, as far as the config makes use of it.

    Args:
        cfg: the whole config.
        train: whether it is to be trained; else keys of the training alone are passed over.

    Raises:
        ConfigError: naming the key, its value and what is allowed.
    """
    for rule in _rules(cfg, train):
        value = value_of(cfg, rule.key)
        if not rule.holds(value):
            raise ConfigError(f"{rule.key} {value!r}: use {rule.allowed}")


def _rules(cfg: CfgNode, train: bool) -> Iterator[_Rule]:
    yield from _ALWAYS
    tasks = model_tasks(cfg)
    if not cfg.INPUT.FIXED_SIZE:
        yield from _TEST_SIZE
    if "sem_seg" in tasks:
        yield from _SEMANTIC
    if "bbox" in tasks and cfg.MODEL.META_ARCHITECTURE != "RetinaNet":
        yield from _instance_rules(cfg)
    if "bbox" in tasks:
        yield from _anchor_rules(cfg)
    if cfg.MODEL.META_ARCHITECTURE != "DeepLabV3Segmentor" and "resnet" in cfg.MODEL.BACKBONE.NAME:
        yield _one_of("MODEL.RESNETS.DEPTH", 18, 34, 50, 101, 152)
        yield _one_of("MODEL.RESNETS.NORM", *_NORMS)
    if "fpn" in cfg.MODEL.BACKBONE.NAME:
        yield from _FPN
    if train:
        yield from _training_rules(cfg)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_part(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_edge(value: Any) -> bool:
    """Of a resized image, in pixels; 0 for none."""
    return _is_whole(value) and value >= 0


def _is_label(value: Any) -> bool:
    return _is_whole(value) and value in (-1, 0, 1)


def _are(check: Callable[[Any], bool], values: object) -> bool:
    return isinstance(values, list | tuple) and all(check(value) for value in values)


def _one_of(key: str, *choices: Any) -> _Rule:
    return _Rule(key, " or ".join(map(repr, choices)), lambda value: value in choices)


def _whole(key: str, least: int, end: float = math.inf) -> _Rule:
    allowed = f"a whole number of {least} or more" + ("" if end == math.inf else f", below {end}")
    return _Rule(key, allowed, lambda value: _is_whole(value) and least <= value < end)


def _at_least(key: str, least: float) -> _Rule:
    return _Rule(
        key, f"a number of {least:g} or more", lambda value: _is_number(value) and value >= least
    )


def _positive(key: str) -> _Rule:
    return _Rule(key, "a number above 0", _is_positive)


def _part(key: str) -> _Rule:
    return _Rule(key, "a number from 0 to 1", _is_part)


def _list(key: str, allowed: str, check: Callable[[Any], bool], length: int = 0) -> _Rule:
    """A list of `length` elements; 0 for any number but none."""

    def holds(values: Any) -> bool:
        return _are(check, values) and (len(values) == length if length else len(values) > 0)

    return _Rule(key, allowed, holds)


_ALWAYS = (
    _one_of("INPUT.FORMAT", "RGB", "BGR"),
    _list("MODEL.PIXEL_MEAN", "three numbers, one for each channel", _is_number, 3),
    _list(
        "MODEL.PIXEL_STD",
        "three numbers above 0, one for each channel",
        _is_positive,
        3,
    ),
    _whole("DATALOADER.NUM_WORKERS", 0),
    _Rule("MODEL.KEYPOINT_ON", "False: shards have no keypoints", lambda value: not value),
    _Rule("MODEL.LOAD_PROPOSALS", "False: shards have no proposals", lambda value: not value),
    _Rule(
        "SEED",
        f"a whole number below {_SEED_END}, negative for a random one",
        lambda value: _is_whole(value) and value < _SEED_END,
    ),
)
_TEST_SIZE = (_whole("INPUT.MIN_SIZE_TEST", 0), _whole("INPUT.MAX_SIZE_TEST", 1))
_SEMANTIC = (
    _Rule(
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE",
        f"{VOID_TRAIN_ID}, which stands for void in the targets",
        lambda value: value == VOID_TRAIN_ID,
    ),
    _at_least("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0),
    _whole("MODEL.SEM_SEG_HEAD.CONVS_DIM", 1),
    _one_of("MODEL.SEM_SEG_HEAD.NORM", *_NORMS),
)
_FPN = (
    _whole("MODEL.FPN.OUT_CHANNELS", 1),
    _one_of("MODEL.FPN.NORM", *_NORMS),
    _one_of("MODEL.FPN.FUSE_TYPE", "sum", "avg"),
)
_SOLVER = (
    _positive("SOLVER.BASE_LR"),
    _whole("SOLVER.MAX_ITER", 1),
    _whole("SOLVER.IMS_PER_BATCH", 1),
    _Rule(
        "SOLVER.CHECKPOINT_PERIOD",
        "a whole number of 1 or more; SOLVER.MAX_ITER for the last checkpoint alone",
        lambda value: _is_whole(value) and value >= 1,
    ),
    _whole("SOLVER.WARMUP_ITERS", 0),
    _at_least("SOLVER.WARMUP_FACTOR", 0),
    _one_of("SOLVER.WARMUP_METHOD", "linear", "constant"),
    _positive("SOLVER.GAMMA"),
    _Rule(
        "SOLVER.STEPS",
        "whole numbers of 1 or more, ascending",
        lambda v: _are(lambda step: _is_whole(step) and step > 0, v) and list(v) == sorted(set(v)),
    ),
    _Rule("SOLVER.MOMENTUM", "a number from 0, below 1", lambda v: _is_number(v) and 0 <= v < 1),
    _at_least("SOLVER.WEIGHT_DECAY", 0),
    _at_least("SOLVER.WEIGHT_DECAY_NORM", 0),
    _whole("TEST.EVAL_PERIOD", 0),
    _whole("TEST.VAL_LOSS_PERIOD", 0),
    _whole("TEST.PRECISE_BN.NUM_ITER", 1),
    _one_of("INPUT.RANDOM_FLIP", "horizontal", "vertical", "none"),
)
_CROP_TYPES = ("relative", "relative_range", "absolute", "absolute_range")


def _training_rules(cfg: CfgNode) -> Iterator[_Rule]:
    yield from _SOLVER
    if not cfg.INPUT.FIXED_SIZE:
        yield _one_of("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice", "range")
        if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
            ordered = "two short edges in pixels, the smaller one first"
            yield _list("INPUT.MIN_SIZE_TRAIN", f"{ordered}, for a range", _is_edge, 2)
            yield _Rule("INPUT.MIN_SIZE_TRAIN", ordered, lambda value: value[0] <= value[1])
        else:
            yield _list("INPUT.MIN_SIZE_TRAIN", "one short edge in pixels, or several", _is_edge)
        yield _whole("INPUT.MAX_SIZE_TRAIN", 1)
    if cfg.INPUT.CROP.ENABLED:
        yield _one_of("INPUT.CROP.TYPE", *_CROP_TYPES)
        if cfg.INPUT.CROP.TYPE.startswith("relative"):
            allowed = "(height, width) as parts of the image, above 0, at most 1"
            yield _list("INPUT.CROP.SIZE", allowed, lambda v: _is_positive(v) and v <= 1, 2)
        else:
            allowed = "two whole numbers of pixels, of 1 or more"
            yield _list("INPUT.CROP.SIZE", allowed, lambda v: _is_whole(v) and v >= 1, 2)
            if cfg.INPUT.CROP.TYPE == "absolute_range":
                ordered = f"{allowed}, the smaller one first"
                yield _Rule("INPUT.CROP.SIZE", ordered, lambda value: value[0] <= value[1])
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        yield _positive("SOLVER.CLIP_GRADIENTS.CLIP_VALUE")
        yield _positive("SOLVER.CLIP_GRADIENTS.NORM_TYPE")


_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_RPN = (
    _whole("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 1),
    _part("MODEL.RPN.POSITIVE_FRACTION"),
    _part("MODEL.RPN.NMS_THRESH"),
    *(
        _whole(f"MODEL.RPN.{place}_NMS_TOPK_{use}", 1)
        for place in ("PRE", "POST")
        for use in ("TRAIN", "TEST")
    ),
    _one_of("MODEL.RPN.BBOX_REG_LOSS_TYPE", *_LOSSES),
    _at_least("MODEL.RPN.SMOOTH_L1_BETA", 0),
    _at_least("MODEL.RPN.LOSS_WEIGHT", 0),
    _at_least("MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 0),
    _list("MODEL.RPN.BBOX_REG_WEIGHTS", "four numbers above 0", _is_positive, 4),
)
_ROI_HEADS = (
    _whole("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 1),
    _part("MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    _part("MODEL.ROI_HEADS.SCORE_THRESH_TEST"),
    _part("MODEL.ROI_HEADS.NMS_THRESH_TEST"),
    _one_of("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", *_LOSSES),
    _at_least("MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0),
    _at_least("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 0),
    _list("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", "four numbers above 0", _is_positive, 4),
    _whole("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 1),
    _whole("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0),
    _one_of("MODEL.ROI_BOX_HEAD.NORM", *_NORMS),
    _whole("MODEL.ROI_BOX_HEAD.CONV_DIM", 1),
    _whole("MODEL.ROI_BOX_HEAD.FC_DIM", 1),
    _Rule(
        "TEST.DETECTIONS_PER_IMAGE",
        "a whole number of 1 or more, or -1 for all",
        lambda value: _is_whole(value) and (value >= 1 or value == -1),
    ),
)
_MASKS = (
    _whole("MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 1),
    _whole("MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 0),
    _one_of("MODEL.ROI_MASK_HEAD.NORM", *_NORMS),
    _whole("MODEL.ROI_MASK_HEAD.CONV_DIM", 1),
)
_COMBINE = (
    _part("MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH"),
    _part("MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"),
    _at_least("MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", 0),
    _at_least("MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT", 0),
)


def _instance_rules(cfg: CfgNode) -> Iterator[_Rule]:
    """Of a model with an RPN and RoI heads."""
    yield from _RPN
    yield from _matching_rules("MODEL.RPN", cfg.MODEL.RPN.IOU_LABELS)
    yield from _ROI_HEADS
    yield from _matching_rules("MODEL.ROI_HEADS", cfg.MODEL.ROI_HEADS.IOU_LABELS)
    if cfg.MODEL.MASK_ON:
        yield from _MASKS
    if "panoptic_seg" in model_tasks(cfg):
        yield from _COMBINE


def _matching_rules(section: str, labels: Sequence[int]) -> Iterator[_Rule]:
    """Thresholds part the overlaps into ranges, and each range has a label."""
    yield _list(
        f"{section}.IOU_LABELS",
        "a list of 0 (background), 1 (object) and -1 (left out)",
        _is_label,
    )
    count = len(labels) - 1
    thresholds = f"{count} number{'' if count == 1 else 's'} above 0, up to 1, ascending"
    yield _Rule(
        f"{section}.IOU_THRESHOLDS",
        f"{thresholds}, one less than {section}.IOU_LABELS {list(labels)!r}",
        lambda values: (
            _are(lambda value: _is_part(value) and value > 0, values)
            and len(values) == count
            and list(values) == sorted(values)
        ),
    )


def _anchor_rules(cfg: CfgNode) -> Iterator[_Rule]:
    if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
        levels, features = len(cfg.MODEL.RETINANET.IN_FEATURES), "MODEL.RETINANET.IN_FEATURES"
    else:
        levels, features = len(cfg.MODEL.RPN.IN_FEATURES), "MODEL.RPN.IN_FEATURES"
    for name in ("SIZES", "ASPECT_RATIOS"):
        yield _Rule(
            f"MODEL.ANCHOR_GENERATOR.{name}",
            f"a list of numbers above 0 for each of the {levels} levels of {features}, or one for "
            "all of them",
            lambda value: _are_anchors(value, levels),
        )


def _are_anchors(value: Any, levels: int) -> bool:
    if _are(_is_positive, value):  # for all levels
        return len(value) > 0
    return _are(lambda own: _are(_is_positive, own) and own, value) and len(value) in (1, levels)
