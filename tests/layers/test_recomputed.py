"""What is computed again gives the same numbers, and autograd keeps less for them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from d2_cityscapes.layers.recomputed import max_pool, norm_and_leaky_relu, recomputed


def maps(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return numbers.to(device, dtype).requires_grad_()


def kept(function, *inputs) -> tuple[torch.Tensor, int]:
    """What it returns, and the bytes that autograd keeps for it beside inputs and result."""
    found: dict[int, int] = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function(*inputs)
    for known in (*inputs, result):
        found.pop(known.untyped_storage().data_ptr(), None)
    return result, sum(found.values())


def test_max_pooling_is_pytorchs_without_its_indices():
    x = maps(2, 3, 17, 20)
    found, beside = kept(lambda x: max_pool(x, 3, 2, 1), x)
    expected, indices = kept(lambda x: F.max_pool2d(x, 3, 2, 1), x)
    assert found.equal(expected)
    assert beside == 0 and indices == 8 * found.numel()
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_group_norm_in_mixed_precision_on_a_gpu(fake_gpu, dtype):
    """Computed in float32 as autocast does, and given to a convolution, which casts it back."""
    x = maps(3, 8, 6, 7, device="cuda", dtype=dtype)
    own = nn.GroupNorm(2, 8).cuda()
    nn.init.normal_(own.weight)
    other, conv = copy.deepcopy(own), nn.Conv2d(8, 4, 1).cuda()
    with torch.autocast("cuda", dtype=dtype):
        found, less = kept(lambda x: norm_and_leaky_relu(own, x, 0.1), x)
        expected, more = kept(lambda x: F.leaky_relu(other(x), 0.1, inplace=True), x)
        after = [conv(found), conv(expected)]
    assert found.dtype == dtype and expected.dtype == torch.float32, "what autocast does"
    assert found.equal(expected.to(dtype))
    assert torch.equal(*after)
    assert less < 0.2 * more
    for y in after:
        y.float().square().sum().backward()
        x.grad, gradient = None, x.grad
        if y is after[0]:
            first = gradient
    assert first.equal(gradient)
    torch.testing.assert_close(own.weight.grad, other.weight.grad)
    torch.testing.assert_close(own.bias.grad, other.bias.grad)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.Identity()])
def test_elsewhere_it_is_the_two_layers(norm):
    x, twin = maps(2, 8, 5, 6), copy.deepcopy(norm)
    found, expected = norm_and_leaky_relu(norm, x * 1, 0.1), F.leaky_relu(twin(x * 1), 0.1)
    assert found.equal(expected)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected)]
    assert torch.equal(*gradients)
    for name, buffer in norm.named_buffers():
        assert buffer.equal(twin.get_buffer(name)), "statistics have moved once"


def test_nothing_is_computed_twice_without_gradients():
    calls = []

    def function(x):
        calls.append(x)
        return x.exp()

    with torch.no_grad():
        recomputed(function, maps(2))
    recomputed(function, maps(2).detach())
    assert len(calls) == 2
    recomputed(function, maps(2)).sum().backward()
    assert len(calls) == 4
