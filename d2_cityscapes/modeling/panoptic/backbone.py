"""FPN of the Seamless model: leaky ReLUs, norms in the FPN, and levels made from C5."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import CNNBlockBase, Conv2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone, build_resnet_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.mini_dl import LEAKY_SLOPE
from d2_cityscapes.layers.recomputed import max_pool
from d2_cityscapes.modeling.backbones.build import wanted_features
from d2_cityscapes.modeling.backbones.net import build_timm_net
from d2_cityscapes.modeling.panoptic.layers import norm_and_activate

__all__ = [
    "LeakyBlock",
    "LeakyStem",
    "TopLevels",
    "build_seamless_resnet_fpn_backbone",
    "build_seamless_timm_fpn_backbone",
]


@BACKBONE_REGISTRY.register()
def build_seamless_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_resnet_fpn_backbone`` as the Seamless model has it.

    It reads the same keys, and tensors have the same names: weights fit but for the norms of the
    FPN. Three things differ: every ReLU is leaky; the FPN's convolutions end in MODEL.FPN.NORM and
    a leaky ReLU; the levels above P5, MODEL.FPN.EXTRA_LEVELS of them, are convolutions on C5.
    """
    body = build_resnet_backbone(cfg, input_shape)
    body.stem = LeakyStem(body.stem)
    for stage in body.stages:
        for i, block in enumerate(stage):
            stage[i] = LeakyBlock(block)
    return _seamless_fpn(cfg, body, cfg.MODEL.FPN.IN_FEATURES)


@BACKBONE_REGISTRY.register()
def build_seamless_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> FPN:
    """The same FPN over a network of timm, which keeps its own activations.

    Raises:
        D2CityscapesError: a plain network; or see `build_timm_net`.
    """
    wanted = wanted_features(cfg)
    net = build_timm_net(cfg, wanted=wanted, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
    if net.is_plain:
        raise D2CityscapesError(
            f"MODEL.TIMM.NAME {cfg.MODEL.TIMM.NAME}: the Seamless FPN takes no maps of one size: "
            "use MODEL.BACKBONE.NAME build_timm_fpn_backbone"
        )
    return _seamless_fpn(cfg, net, list(net.output_shape()))


def _seamless_fpn(cfg: CfgNode, body: Backbone, in_features: Sequence[str]) -> FPN:
    norm, channels, last = cfg.MODEL.FPN.NORM, cfg.MODEL.FPN.OUT_CHANNELS, in_features[-1]
    fpn = FPN(
        bottom_up=body,
        in_features=in_features,
        out_channels=channels,
        top_block=TopLevels(
            body.output_shape()[last], channels, cfg.MODEL.FPN.EXTRA_LEVELS, norm, in_feature=last
        ),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    for conv in (*fpn.lateral_convs, *fpn.output_convs):
        norm_and_activate(conv, norm)
    return fpn


class LeakyStem(CNNBlockBase):
    """The stem of a ResNet of Detectron2, with a leaky ReLU."""

    def __init__(self, stem: CNNBlockBase) -> None:
        """
        Args:
            stem: its layers are taken over.
        """
        super().__init__(stem.in_channels, stem.out_channels, stem.stride)
        self.conv1 = stem.conv1

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu_(self.conv1(x), LEAKY_SLOPE)
        return max_pool(x, size=3, stride=2, padding=1)


class LeakyBlock(CNNBlockBase):
    """A residual block of Detectron2 with leaky ReLUs, the one behind the sum too."""

    def __init__(self, block: CNNBlockBase) -> None:
        """
        Args:
            block: a `BasicBlock` or `BottleneckBlock`; its layers are taken over.
        """
        super().__init__(block.in_channels, block.out_channels, block.stride)
        if not isinstance(block, BasicBlock | BottleneckBlock):
            raise D2CityscapesError(
                f"{type(block).__name__}: the Seamless model has no such blocks; set "
                "MODEL.RESNETS.DEFORM_ON_PER_STAGE to False for all stages"
            )
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        self.conv2 = block.conv2
        self.conv3 = getattr(block, "conv3", None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.leaky_relu_(self.conv1(x), LEAKY_SLOPE))
        if self.conv3 is not None:
            out = self.conv3(F.leaky_relu_(out, LEAKY_SLOPE))
        out += x if self.shortcut is None else self.shortcut(x)
        return F.leaky_relu_(out, LEAKY_SLOPE)


class TopLevels(nn.Module):
    """Levels above P5: a 3x3 convolution of stride 2 on C5, and one more on each level before."""

    def __init__(
        self,
        input_shape: ShapeSpec,
        channels: int,
        num_levels: int,
        norm: str,
        *,
        in_feature: str = "res5",
    ) -> None:
        """
        Args:
            input_shape: channels and stride of C5.
            channels: of the levels.
            num_levels: how many, from p6 on.
            norm: as in `detectron2.layers.get_norm`.
            in_feature: the name of C5; `FPN` reads this and `num_levels`.
        """
        super().__init__()
        self.num_levels = num_levels
        self.in_feature = in_feature
        in_channels = input_shape.channels
        first = input_shape.stride.bit_length()  # stride 32 is 2 ** 5, so 6
        for level in range(first, first + num_levels):
            conv = Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
            norm_and_activate(conv, norm)
            self.add_module(f"p{level}", conv)
            in_channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) C5 to (N, channels, ., .) of each level."""
        levels = []
        for conv in self.children():
            x = conv(x)
            levels.append(x)
        return levels
