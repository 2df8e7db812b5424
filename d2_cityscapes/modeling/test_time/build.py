"""TEST.AUG and TEST.SLIDING_WINDOW: what a model is tested as, and which models can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.freezing.freeze import unwrap
from d2_cityscapes.modeling.test_time.instances import InstanceViews
from d2_cityscapes.modeling.test_time.panoptic import PanopticViews
from d2_cityscapes.modeling.test_time.semantic import SemanticViews
from d2_cityscapes.modeling.test_time.windows import SlidingWindows

__all__ = ["as_tested", "augmented", "check_test_time"]

# its semantic scores are sums of probabilities, and its instances belong to the queries of a view
_UNIVERSAL = "UniversalSegmentor"
_LEAST = 64  # pixels of a side of a window: two cells of the coarsest maps of most networks


def as_tested(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model as evaluations and predictions call it: in windows where TEST.SLIDING_WINDOW says.

    Else the model itself.
    """
    return _in_windows(cfg, model, labels=True) if cfg.TEST.SLIDING_WINDOW.ENABLED else model


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model as TEST.AUG has it: one that averages views of each picture.

    The views are Detectron2's (`DatasetMapperTTA`): what the mapper of tests gives, resized to each
    of MIN_SIZES, up to MAX_SIZE, and with FLIP each once more mirrored.

    Args:
        cfg: with TEST.AUG.ENABLED; see `check_test_time` for the models.
        model: data-parallel or not; in which mode it is stays so.

    Returns:
        From a list of inputs, with "height" and "width", to the model's outputs.
    """
    return _AUGMENTED[_kind(cfg)](cfg, unwrap(model), DatasetMapperTTA(cfg))


def check_test_time(cfg: CfgNode) -> None:
    """Refuse TEST.AUG and TEST.SLIDING_WINDOW where the model cannot, and values that are none.

    Raises:
        D2CityscapesError: see above.
    """
    kind, model = _kind(cfg), cfg.MODEL.META_ARCHITECTURE
    if model == _UNIVERSAL:
        model = f"{model} with MODEL.UNIVERSAL.INSTANCES {cfg.MODEL.UNIVERSAL.INSTANCES}"
    if cfg.TEST.AUG.ENABLED:
        if not kind:
            raise D2CityscapesError(
                f"TEST.AUG.ENABLED True: not for {model}, whose predictions of several views are "
                "not averaged: set it to False"
            )
        _check_views(cfg.TEST.AUG)
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        if kind != "semantic":
            raise D2CityscapesError(
                "TEST.SLIDING_WINDOW.ENABLED True: for models of semantics alone, and not for "
                f"{model}, whose instances would be cut: set it to False"
            )
        _check_windows(cfg.TEST.SLIDING_WINDOW)
    averages = cfg.TEST.AUG.ENABLED or cfg.TEST.SLIDING_WINDOW.ENABLED
    if averages and cfg.MODEL.META_ARCHITECTURE == _UNIVERSAL and not cfg.TEST.SEM_SEG_SCORES:
        raise D2CityscapesError(
            f"TEST.SEM_SEG_SCORES False: not with TEST.AUG or TEST.SLIDING_WINDOW of {model}, "
            "whose scores are averaged: set it to True"
        )


def _check_views(views: CfgNode) -> None:
    sizes = views.MIN_SIZES
    if not (isinstance(sizes, list | tuple) and sizes and all(map(_is_length, sizes))):
        raise D2CityscapesError(
            f"TEST.AUG.MIN_SIZES {sizes!r}: use one short edge in pixels, or several"
        )
    if not _is_length(views.MAX_SIZE):
        raise D2CityscapesError(
            f"TEST.AUG.MAX_SIZE {views.MAX_SIZE!r}: use a whole number of 1 or more"
        )


def _check_windows(window: CfgNode) -> None:
    for key in ("SIZE", "STRIDE"):
        if not (len(window[key]) == 2 and all(map(_is_length, window[key]))):
            raise D2CityscapesError(
                f"TEST.SLIDING_WINDOW.{key} {list(window[key])}: use [height, width] in pixels"
            )
    if min(window.SIZE) < _LEAST:
        raise D2CityscapesError(
            f"TEST.SLIDING_WINDOW.SIZE {list(window.SIZE)}: use {_LEAST} pixels or more, as "
            "networks see nothing in less"
        )
    if any(stride > size for stride, size in zip(window.STRIDE, window.SIZE, strict=True)):
        raise D2CityscapesError(
            f"TEST.SLIDING_WINDOW.STRIDE {list(window.STRIDE)} is larger than SIZE "
            f"{list(window.SIZE)}: what lies in between would not be seen"
        )


def _semantic(cfg: CfgNode, model: nn.Module, views: DatasetMapperTTA) -> nn.Module:
    if cfg.TEST.SLIDING_WINDOW.ENABLED:
        model = _in_windows(cfg, model, labels=False)
    averaged = None if cfg.MODEL.META_ARCHITECTURE != _UNIVERSAL else nn.Identity()
    return SemanticViews(model, views, normalize=averaged, labels=not cfg.TEST.SEM_SEG_SCORES)


def _in_windows(cfg: CfgNode, model: nn.Module, *, labels: bool) -> SlidingWindows:
    """With `labels` in labels, where the config wants no scores."""
    window = cfg.TEST.SLIDING_WINDOW
    labels = labels and not cfg.TEST.SEM_SEG_SCORES
    return SlidingWindows(unwrap(model), tuple(window.SIZE), tuple(window.STRIDE), labels=labels)


_AUGMENTED: dict[str, Callable[..., nn.Module]] = {
    "instances": InstanceViews,
    "panoptic": PanopticViews,
    "semantic": _semantic,
}


def _kind(cfg: CfgNode) -> str:
    """What is averaged, a key of `_AUGMENTED`; "" where nothing can be."""
    if cfg.MODEL.META_ARCHITECTURE == _UNIVERSAL:
        return "" if cfg.MODEL.UNIVERSAL.INSTANCES else "semantic"
    return {
        "GeneralizedRCNN": "instances",
        "StagedRCNN": "instances",
        "SeamlessPanoptic": "panoptic",
        "SemanticSegmentor": "semantic",
        "StagedSegmentor": "semantic",
        "DeepLabV3Segmentor": "semantic",
    }.get(cfg.MODEL.META_ARCHITECTURE, "")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
