"""Builders of backbones with a network of timm."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.backbones.net import TimmNet, build_timm_net
from d2_cityscapes.modeling.backbones.pyramid import SimpleFeaturePyramid

__all__ = ["TimmEncoder", "build_timm_encoder", "build_timm_fpn_backbone", "wanted_features"]

_LEVELS = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> Backbone:
    """A network of timm under an FPN, or a plain one under a simple feature pyramid.

    Levels are "p2" to "p6", as of Detectron2's ``build_resnet_fpn_backbone``, where the network has
    maps of strides 4 to 32. It reads MODEL.TIMM, MODEL.FPN and MODEL.BACKBONE.FREEZE_AT. In a
    simple feature pyramid MODEL.FPN.NORM "" is "LN", as in its paper.

    Raises:
        D2CityscapesError: see `build_timm_net`.
    """
    wanted = wanted_features(cfg)
    net = build_timm_net(cfg, wanted=wanted, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    channels, norm = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.NORM
    if net.is_plain:
        levels = [int(name[3:]) for name in wanted or _LEVELS]
        return SimpleFeaturePyramid(net, levels, channels, norm or "LN")
    shapes = net.output_shape()
    top = LastLevelMaxPool()
    top.in_feature = f"p{shapes[list(shapes)[-1]].stride.bit_length() - 1}"
    return FPN(
        bottom_up=net,
        in_features=list(shapes),
        out_channels=channels,
        norm=norm,
        top_block=top,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def wanted_features(cfg: CfgNode) -> list[str]:
    """MODEL.FPN.IN_FEATURES, or where it is empty MODEL.TIMM.OUT_FEATURES, finest first.

    Raises:
        D2CityscapesError: the first has what the second leaves out, or other names than "res2" to
            "res5" in a row.
    """
    inputs, outputs = list(cfg.MODEL.FPN.IN_FEATURES), list(cfg.MODEL.TIMM.OUT_FEATURES)
    beyond = [name for name in inputs if outputs and name not in outputs]
    if beyond:
        raise D2CityscapesError(
            f"MODEL.FPN.IN_FEATURES: MODEL.TIMM.OUT_FEATURES has no {', '.join(beyond)}: leave out "
            "one of the two keys"
        )
    wanted = sorted(inputs or outputs)
    if wanted and wanted not in _rows():
        raise D2CityscapesError(
            f"MODEL.FPN.IN_FEATURES, MODEL.TIMM.OUT_FEATURES {wanted}: use {', '.join(_LEVELS)} or "
            "some of these in a row"
        )
    return wanted


def _rows() -> list[list[str]]:
    ends = range(len(_LEVELS) + 1)
    return [list(_LEVELS[first:end]) for first in ends for end in ends[first + 1 :]]


class TimmEncoder(nn.Module):
    """A network of timm with the outputs of torchvision's segmentation backbones.

    Its tensors have the names that they have below an FPN.

    Attributes:
        bottom_up: the network.
        size_divisibility: pixels, a multiple of which height and width are padded to.
    """

    def __init__(self, bottom_up: TimmNet) -> None:
        """
        Args:
            bottom_up: gives "aux" and "out".
        """
        super().__init__()
        self.bottom_up = bottom_up
        self.size_divisibility = bottom_up.size_divisibility

    def channels(self) -> Sequence[int]:
        """Of "aux" and "out"."""
        shapes = self.bottom_up.output_shape()
        return [shapes[name].channels or 0 for name in ("aux", "out")]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) to the maps "aux", of the stage before the last one, and "out", of that."""
        return self.bottom_up(x)


def build_timm_encoder(cfg: CfgNode) -> TimmEncoder:
    """The network alone, with dilated convolutions in place of its last strides.

    It reads MODEL.TIMM; MODEL.FREEZE freezes, not FREEZE_AT.

    Raises:
        D2CityscapesError: timm has it with its own strides alone; or see `build_timm_net`.
    """
    stride = cfg.MODEL.TIMM.OUTPUT_STRIDE
    if stride not in (8, 16):
        raise D2CityscapesError(f"MODEL.TIMM.OUTPUT_STRIDE {stride}: use 8 or 16")
    return TimmEncoder(build_timm_net(cfg, ends=("aux", "out"), output_stride=stride))
