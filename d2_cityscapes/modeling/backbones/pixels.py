"""Pictures as the weights of a timm network want them: their mean, deviation and channel order.

A network fed otherwise still trains, only worse, and nothing says why: DINOv2 gave 0.58 instead of
0.67 mIoU that way (facebookresearch/dinov2, issue 385).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_stock_cfg

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.weights import uses_timm, weights_of

__all__ = ["pixel_statistics", "settle_pixels"]

_OF_STOCK = get_stock_cfg().MODEL  # BGR, and a deviation of 1
_ALIKE = 0.01  # of 255: how numbers are rounded


def pixel_statistics(cfg: CfgNode) -> tuple[list[float], list[float]]:
    """Mean and deviation of the weights' pictures, in the order of INPUT.FORMAT.

    Raises:
        D2CityscapesError: MODEL.PIXEL_MEAN and PIXEL_STD are set, and not to these.
    """
    weights = weights_of(cfg.MODEL.TIMM.NAME)
    turned = 1 if cfg.INPUT.FORMAT == "RGB" else -1
    mean, std = (
        [round(value, 3) for value in values[::turned]] for values in (weights.mean, weights.std)
    )
    model = cfg.MODEL
    if not _untouched(cfg) and not (
        _alike(model.PIXEL_MEAN, mean) and _alike(model.PIXEL_STD, std)
    ):
        raise D2CityscapesError(
            f"MODEL.PIXEL_MEAN {list(model.PIXEL_MEAN)} and PIXEL_STD {list(model.PIXEL_STD)} are "
            f"not those of the weights of {weights.name}: leave them out, or write, for "
            f"INPUT.FORMAT {cfg.INPUT.FORMAT}, MODEL.PIXEL_MEAN '{mean}' MODEL.PIXEL_STD '{std}'"
        )
    return mean, std


def settle_pixels(cfg: CfgNode) -> CfgNode:
    """The config with MODEL.PIXEL_MEAN and PIXEL_STD of a timm network's weights.

    INPUT.FORMAT stays: whoever reads pictures goes by it, and the network turns channels round
    where it has to. With another backbone, or with these numbers in it, it is the config itself.

    Raises:
        D2CityscapesError: other numbers are set.
    """
    if not uses_timm(cfg):
        return cfg
    mean, std = pixel_statistics(cfg)
    if not _untouched(cfg):
        return cfg
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = mean, std
    if frozen:
        cfg.freeze()
    return cfg


def _untouched(cfg: CfgNode) -> bool:
    """Whether both are Detectron2's defaults."""
    return all(list(cfg.MODEL[key]) == list(_OF_STOCK[key]) for key in ("PIXEL_MEAN", "PIXEL_STD"))


def _alike(found: Sequence[float], wanted: Sequence[float]) -> bool:
    return len(found) == len(wanted) and all(
        isinstance(x, int | float) and math.isclose(x, y, rel_tol=0, abs_tol=_ALIKE)
        for x, y in zip(found, wanted, strict=True)
    )
