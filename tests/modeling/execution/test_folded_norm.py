"""Folded norms: the numbers of convolution and norm in turn, without the norm's pass."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.execution.folded_norm import fold_frozen_norms


def randomised(norm: FrozenBatchNorm2d) -> FrozenBatchNorm2d:
    for statistic in (norm.weight, norm.bias, norm.running_mean):
        statistic.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def detectron2_layer(**options) -> Conv2d:
    settings = {
        "kernel_size": 3,
        "padding": 1,
        "norm": randomised(FrozenBatchNorm2d(8)),
        "activation": F.relu_,
    }
    return Conv2d(4, 8, **(settings | options))


def torchvision_block() -> nn.Module:
    """A bottleneck with a projection: norms beside convolutions, and in a Sequential."""
    down = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
    block = FrozenBatchNorm2d.convert_frozen_batchnorm(Bottleneck(8, 4, downsample=down))
    for layer in block.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            randomised(layer)
    return block


def run(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of the input and of every parameter, of a weighted sum of it."""
    x = x.clone().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *layer.parameters()])]


@settings(max_examples=20, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), st.integers(3, 7), st.integers(3, 7)),
    stride=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    dilation=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_layer_of_detectron2(size, stride, groups, bias, dilation, seed):
    torch.manual_seed(seed)
    layer = detectron2_layer(
        stride=stride, groups=groups, bias=bias, dilation=dilation, padding=dilation
    ).double()
    x = torch.randn(size[0], 4, *size[1:], dtype=torch.float64)
    expected = run(layer, x)
    assert fold_frozen_norms(layer) == 1
    for ours, stock in zip(run(layer, x), expected, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-10)


def test_a_block_of_torchvision():
    torch.manual_seed(0)
    block, x = torchvision_block().double(), torch.randn(2, 8, 6, 5, dtype=torch.float64)
    expected = run(block, x)
    assert fold_frozen_norms(block) == 4
    for ours, stock in zip(run(block, x), expected, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [detectron2_layer, torchvision_block])
def test_float32_agrees_to_rounding(make):
    torch.manual_seed(0)
    layer = make()
    channels = next(layer.parameters()).shape[1]
    x = torch.randn(2, channels, 16, 16)
    expected = run(layer, x)
    fold_frozen_norms(layer)
    for ours, stock in zip(run(layer, x), expected, strict=True):
        assert (ours - stock).abs().max() <= 1e-5 * stock.abs().max()


@pytest.mark.parametrize("make", [detectron2_layer, torchvision_block])
def test_no_norm_passes_over_a_map(make, monkeypatch):
    layer = make()
    fold_frozen_norms(layer)

    def fail(*_):
        raise AssertionError("a norm ran")

    monkeypatch.setattr(FrozenBatchNorm2d, "forward", fail)
    monkeypatch.setattr(F, "batch_norm", fail)
    layer(torch.randn(1, next(layer.parameters()).shape[1], 4, 4, requires_grad=True))


@pytest.mark.parametrize("make", [detectron2_layer, torchvision_block])
def test_names_and_tensors_stay_and_new_ones_count_at_once(make):
    torch.manual_seed(0)
    layer, other = make(), make()
    names = [name for name, _ in layer.named_modules()]
    x = torch.randn(1, next(layer.parameters()).shape[1], 5, 5)
    before = copy.deepcopy(layer.state_dict())
    fold_frozen_norms(layer)
    layer(x)
    assert [name for name, _ in layer.named_modules()] == names
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(layer.state_dict()[name], before[name]) for name in before)

    layer.load_state_dict(other.state_dict())
    torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        next(layer.parameters()).mul_(2)
        next(other.parameters()).mul_(2)
    torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [detectron2_layer, torchvision_block])
def test_copies_are_folded_and_on_their_own(make):
    layer = nn.Sequential(make())
    fold_frozen_norms(layer)
    x = torch.randn(1, next(layer.parameters()).shape[1], 5, 5)
    expected = layer(x)
    file = io.BytesIO()
    twin = copy.deepcopy(layer)
    if make is torchvision_block:  # F.relu_, of the other, is no class that pickle knows
        torch.save(layer, file)
        file.seek(0)
        assert torch.equal(torch.load(file, weights_only=False)(x), expected)
    for buffer in layer.buffers():
        buffer.zero_()
    assert torch.equal(twin(x), expected)
    assert not torch.equal(layer(x), expected)


def test_under_autocast_the_product_is_made_in_float32():
    torch.manual_seed(0)
    layer, x = detectron2_layer(bias=False, activation=None), torch.randn(1, 4, 6, 6)
    norm = layer.norm
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    expected = F.conv2d(
        x.bfloat16(),
        (layer.weight * scale.view(-1, 1, 1, 1)).bfloat16(),
        (norm.bias - norm.running_mean * scale).bfloat16(),
        padding=1,
    )
    fold_frozen_norms(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_frozen_weights_get_no_gradient_and_pass_one_on():
    layer = detectron2_layer()
    fold_frozen_norms(layer)
    layer.requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert layer.weight.grad is None


@pytest.mark.parametrize(
    "layer",
    [
        Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4)),
        Conv2d(3, 4, 3),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), FrozenBatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
    ],
)
def test_what_has_no_frozen_norm_behind_a_convolution_is_refused(layer):
    with pytest.raises(D2CityscapesError, match=r"MODEL.RESNETS.FOLD_FROZEN_NORM: no convolution"):
        fold_frozen_norms(layer)
