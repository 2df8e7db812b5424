"""The simple feature pyramid of Li et al., "Exploring Plain Vision Transformer Backbones for Object
Detection" (ViTDet), ECCV 2022, section 3: all levels are made of the last map of a plain network.
"""

from __future__ import annotations

import fvcore.nn.weight_init as weight_init
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ChannelNorm", "SimpleFeaturePyramid"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell of a map: (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        normed = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed.to(x.dtype)  # autocast computes it in float32 on a GPU


class SimpleFeaturePyramid(Backbone):
    """Levels of strides 4 to 32 from one map, by transposed convolutions of stride 2 or pooling.

    Each level ends in a 1 x 1 and a 3 x 3 convolution with a norm behind each. Its modules are
    called "fpn_level2" and so on; one more level is the last one pooled, as in Detectron2's FPN.
    """

    def __init__(
        self, bottom_up: Backbone, levels: list[int], out_channels: int, norm: str = "LN"
    ) -> None:
        """
        Args:
            bottom_up: gives one map, whose stride is a power of two.
            levels: ascending and one after the other: 2 for stride 4, 3 for 8, ...
            out_channels: of every level.
            norm: "LN" as in the paper, else as in `detectron2.layers.get_norm`.
        """
        super().__init__()
        self.bottom_up = bottom_up
        (self._in_feature, shape), *_ = bottom_up.output_shape().items()
        own = shape.stride.bit_length() - 1
        for level in levels:
            layers = [
                *_resized(shape.channels, own - level, norm),
                _conv(shape.channels >> max(own - level, 0), out_channels, 1, norm),
                _conv(out_channels, out_channels, 3, norm),
            ]
            self.add_module(f"fpn_level{level}", nn.Sequential(*layers))
        self._levels = tuple(levels)
        self._out_features = [f"p{level}" for level in (*levels, levels[-1] + 1)]
        self._out_feature_strides = {name: 1 << int(name[1:]) for name in self._out_features}
        self._out_feature_channels = dict.fromkeys(self._out_features, out_channels)

    @property
    def size_divisibility(self) -> int:
        """Pixels, a multiple of which height and width are padded to."""
        return max(1 << self._levels[-1], self.bottom_up.size_divisibility)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=stride)
            for name, stride in self._out_feature_strides.items()
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) pictures to (N, out_channels, H / 4, W / 4) "p2", and so on."""
        features = self.bottom_up(x)[self._in_feature]
        maps = [self.get_submodule(f"fpn_level{level}")(features) for level in self._levels]
        maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return dict(zip(self._out_features, maps, strict=True))


def _resized(channels: int, doublings: int, norm: str) -> list[nn.Module]:
    """Layers that double height and width so many times, and halve the channels, or pool."""
    layers: list[nn.Module] = []
    for done in range(doublings):
        if done:
            layers += [*filter(None, [_norm(norm, channels)]), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        channels //= 2
    layers += [nn.MaxPool2d(kernel_size=2, stride=2) for _ in range(-doublings)]
    return layers


def _conv(in_channels: int, out_channels: int, size: int, norm: str) -> Conv2d:
    behind = _norm(norm, out_channels)
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        padding=size // 2,
        bias=behind is None,
        norm=behind,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


def _norm(name: str, channels: int) -> nn.Module | None:
    return ChannelNorm(channels) if name == "LN" else get_norm(name, channels)
