"""The simple feature pyramid, against the same layers written out one by one."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor
from torch.nn import functional as F

from d2_cityscapes.modeling.backbones.pyramid import ChannelNorm, SimpleFeaturePyramid


class Map(Backbone):
    """Every n-th pixel of the picture, as 8 channels of one map."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    @property
    def size_divisibility(self) -> int:
        return self.stride

    def output_shape(self):
        return {"last": ShapeSpec(channels=8, stride=self.stride)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x[:, :, :: self.stride, :: self.stride]
        return {"last": torch.cat([x, x.square(), x[:, :2] * 3], 1)}


def norm(x: Tensor, layer: ChannelNorm) -> Tensor:
    mean = x.mean(1, keepdim=True)
    deviation = (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    weight, bias = (p.view(1, -1, 1, 1) for p in (layer.weight, layer.bias))
    return (x - mean) / deviation * weight + bias


@torch.no_grad()
def test_levels_are_those_of_the_paper():
    """Stride 16: 4 by two transposed convolutions, 8 by one, 16 as it is, 32 by pooling."""
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(Map(16), [2, 3, 4, 5], 6)
    for p in pyramid.parameters():
        p.normal_()
    x = torch.randn(2, 3, 64, 96)
    found = pyramid(x)
    c = pyramid.bottom_up(x)["last"]

    def layers(level: int) -> list:
        return list(pyramid.get_submodule(f"fpn_level{level}"))

    def up(x: Tensor, layer) -> Tensor:
        return F.conv_transpose2d(x, layer.weight, layer.bias, stride=2)

    def end(x: Tensor, one, three) -> Tensor:
        x = norm(F.conv2d(x, one.weight), one.norm)
        return norm(F.conv2d(x, three.weight, padding=1), three.norm)

    first, middle, _, second, *last = layers(2)
    expected = {"p2": end(up(F.gelu(norm(up(c, first), middle)), second), *last)}
    only, *last = layers(3)
    expected["p3"] = end(up(c, only), *last)
    expected["p4"] = end(c, *layers(4))
    _, *last = layers(5)
    expected["p5"] = end(F.max_pool2d(c, 2), *last)
    expected["p6"] = expected["p5"][:, :, ::2, ::2]
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_any_stride_of_the_map(stride):
    pyramid = SimpleFeaturePyramid(Map(stride), [2, 3, 4, 5], 6)
    assert pyramid.size_divisibility == 32
    for key, x in pyramid(torch.randn(1, 3, 64, 128)).items():
        shape = pyramid.output_shape()[key]
        assert x.shape == (1, shape.channels, 64 // shape.stride, 128 // shape.stride)


def test_its_levels_have_the_names_of_an_fpn():
    """So that MODEL.FREEZE's "backbone.fpn_*" means the same."""
    pyramid = SimpleFeaturePyramid(Map(16), [3, 4], 6)
    assert [name for name, _ in pyramid.named_children()] == [
        "bottom_up",
        "fpn_level3",
        "fpn_level4",
    ]
    assert list(pyramid(torch.randn(1, 3, 64, 64))) == ["p3", "p4", "p5"]
