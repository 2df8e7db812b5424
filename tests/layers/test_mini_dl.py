"""MiniDL: hand-worked windows, the direct form, golden numbers, gradients, precision, export."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from d2_cityscapes.layers import MiniDL
from d2_cityscapes.layers.mini_dl import sliding_mean

no_deadline = settings(deadline=None)  # a busy machine is no failure


def direct_pooling(x, pool_size):
    """Every window summed on its own, the border repeated."""
    height, width = (min(sides) for sides in zip(pool_size, x.shape[2:], strict=True))
    pooled = F.avg_pool2d(x, (height, width), stride=1)
    padding = ((width - 1) // 2, width // 2, (height - 1) // 2, height // 2)
    return F.pad(pooled, padding, mode="replicate")


def direct_form(module: MiniDL, x):
    """MiniDL as the paper draws it, the 1x1 convolution of the context after the pooling."""
    context = module.branch_context(direct_pooling(x, module.pool_size))
    branches = torch.cat([module.branch_local(x), module.branch_dilated(x), context], dim=1)
    hidden = F.leaky_relu(module.branch_norm(branches), 0.01)
    return F.leaky_relu(module.fuse_norm(module.fuse(hidden)), 0.01)


def gradients(y, inputs):
    """Of a weighted sum with fixed weights, so that no two cells of the output are alike."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad((y * weights).sum(), inputs)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, [1.0, 2, 4, 8]),
        (2, [1.5, 3, 6, 6]),  # nothing before, the last repeated once after
        (3, [7 / 3, 7 / 3, 14 / 3, 14 / 3]),  # one cell on either side
        (4, [3.75] * 4),
    ],
)
def test_windows_by_hand(window, expected):
    row = torch.tensor([1.0, 2, 4, 8])
    along_x = sliding_mean(row.view(1, 1, 1, 4), window, 3)
    along_y = sliding_mean(row.view(1, 1, 4, 1), window, 2)
    torch.testing.assert_close(along_x.flatten(), torch.tensor(expected))
    torch.testing.assert_close(along_y.flatten(), torch.tensor(expected))


def test_even_window_repeats_31_before_and_32_after():
    x = torch.arange(100.0).view(1, 1, 1, 100)
    means = sliding_mean(x, 64, 3).flatten()
    assert torch.equal(means[:32], torch.full((32,), 31.5))  # cells 0..63
    assert torch.equal(means[31:68], torch.arange(31.5, 68))
    assert torch.equal(means[67:], torch.full((33,), 67.5))  # cells 36..99


@settings(no_deadline, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    pool_size=st.tuples(st.integers(1, 45), st.integers(1, 45)),
    channels=st.sampled_from([(3, 2), (2, 3), (2, 2)]),
    images=st.integers(1, 2),
    channels_last=st.booleans(),
)
def test_equals_the_direct_form(size, pool_size, channels, images, channels_last):
    torch.manual_seed(0)
    module = MiniDL(*channels, pool_size, dilation=2).eval().double()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(images, channels[0], *size, dtype=torch.float64)
    x = x.contiguous(memory_format=layout).requires_grad_()
    ours, direct = module(x), direct_form(module, x)
    torch.testing.assert_close(ours, direct)
    inputs = [x, *module.parameters()]
    torch.testing.assert_close(gradients(ours, inputs), gradients(direct, inputs))


@pytest.mark.parametrize("size", [(70, 90), (64, 128), (64, 70), (100, 33), (20, 10), (1, 1)])
def test_equals_the_direct_form_with_the_window_of_the_paper(size):
    torch.manual_seed(0)
    module = MiniDL(16, 8)
    x = torch.randn(2, 16, *size, requires_grad=True)
    ours, direct = module.context(x), module.branch_context(direct_pooling(x, (64, 64)))
    torch.testing.assert_close(ours, direct, atol=1e-5, rtol=1e-5)
    inputs = [x, module.branch_context.weight]
    torch.testing.assert_close(
        gradients(ours, inputs), gradients(direct, inputs), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("pool_size", [(3, 4), (9, 4), (2, 9), (9, 9)])
def test_gradients_equal_finite_differences(pool_size):
    torch.manual_seed(0)
    module = MiniDL(3, 2, pool_size, dilation=2, norm="").double()
    x = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module.context, x)
    assert torch.autograd.gradcheck(module, x)


@pytest.fixture(scope="module")
def golden(repository):
    return np.load(repository / "tests" / "golden" / "minidl.npz")


def with_golden_weights(golden, name: str) -> MiniDL:
    module = MiniDL(16, 8, golden[f"{name}/pooling_size_hw"].tolist()).eval()
    names = {
        "branch_local": "branch_local.conv3x3",
        "branch_dilated": "branch_dilated.conv3x3_d6",
        "branch_context": "branch_pool.conv1x1",
        "branch_norm": "branches.bn",
        "fuse": "fuse.conv1x1",
        "fuse_norm": "fuse.bn",
    }
    state = module.state_dict()
    for key in state:
        part, _, kind = key.rpartition(".")
        if kind != "num_batches_tracked":
            state[key] = torch.from_numpy(golden[f"{name}/w/{names[part]}.{kind}"])
    module.load_state_dict(state)
    return module


@pytest.mark.parametrize(("name", "cases"), [("p64", 3), ("p7", 2)])
@torch.no_grad()
def test_golden_numbers(golden, name, cases):
    module = with_golden_weights(golden, name)
    for case in range(cases):
        x, pooled, y = (
            torch.from_numpy(golden[f"{name}/case{case}/{key}"]) for key in ("x", "pooled", "y")
        )
        means = x
        for axis, window in zip((2, 3), module.pool_size, strict=True):
            means = sliding_mean(means, min(window, x.shape[axis]), axis)
        torch.testing.assert_close(means, pooled, atol=1e-5, rtol=0)
        torch.testing.assert_close(module(x), y, atol=1e-4, rtol=1e-4)


def test_parameters_of_the_paper():
    assert sum(p.numel() for p in MiniDL(256).parameters()) == 672_768


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("GN", nn.GroupNorm),
        ("", nn.Identity),
        (lambda channels: nn.InstanceNorm2d(channels), nn.InstanceNorm2d),
        (lambda channels: None, nn.Identity),
    ],
)
def test_norms(norm, kind):
    torch.manual_seed(0)
    module = MiniDL(4, 32, (3, 3), norm=norm)
    assert type(module.branch_norm) is type(module.fuse_norm) is kind
    x = torch.randn(2, 4, 6, 7, requires_grad=True)
    ours, direct = module(x), direct_form(module, x)  # batch statistics, as in training
    torch.testing.assert_close(ours, direct, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients(ours, [x]), gradients(direct, [x]), atol=1e-4, rtol=1e-4)


def test_weights_start_as_glorots_for_a_leaky_relu():
    torch.manual_seed(0)
    module = MiniDL(64, 64)
    spread = (2 / (1 + 0.01**2)) ** 0.5 * (2 / (64 * 9 + 64 * 9)) ** 0.5
    assert module.branch_local.weight.std().item() == pytest.approx(spread, rel=0.02)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
@torch.no_grad()
def test_half_precision_is_close(dtype, tolerance):
    torch.manual_seed(0)
    module = MiniDL(8, 8).eval()
    x = torch.randn(1, 8, 80, 100)
    expected = module(x)
    torch.testing.assert_close(
        module.to(dtype)(x.to(dtype)).float(), expected, atol=tolerance, rtol=tolerance
    )


def test_bfloat16_autocast_is_close():
    torch.manual_seed(0)
    module = MiniDL(8, 8)
    x = torch.randn(2, 8, 80, 100, requires_grad=True)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    torch.testing.assert_close(y.float(), expected, atol=0.1, rtol=0.05)
    (gradient,) = gradients(y, [x])
    (wanted,) = gradients(expected, [x])
    assert F.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0) > 0.995


@torch.no_grad()
def test_float16_does_not_overflow():
    x = torch.full((1, 1, 80, 100), 60000.0, dtype=torch.float16)  # a sum of two is infinite
    for axis in (2, 3):
        assert torch.equal(sliding_mean(x, 64, axis), x)
    module = MiniDL(1, 1).half()
    module.branch_context.weight.fill_(1)
    for size in ((80, 100), (20, 100), (20, 10)):
        assert torch.isfinite(module.context(x[..., : size[0], : size[1]])).all()


def test_keeps_the_layout_of_its_input():
    module = MiniDL(4, 4, (3, 3))
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 4, 8, 9).contiguous(memory_format=layout)
        assert module.context(x).is_contiguous(memory_format=layout)
        assert module(x).is_contiguous(memory_format=layout)


def test_input_is_left_alone():
    x = torch.randn(1, 3, 8, 9)
    before = x.clone()
    MiniDL(3, 3, (3, 3), norm="")(x)
    assert torch.equal(x, before)


@pytest.mark.no_fake_gpu("torch.compile")
def test_compiles_without_graph_breaks():
    torch.manual_seed(0)
    module = MiniDL(3, 4, (4, 16))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((6, 20), (7, 24)):  # the second with the shapes of the first made symbols
        x = torch.randn(2, 3, *size, requires_grad=True)
        y, expected = compiled(x), module(x)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            gradients(y, [x]), gradients(expected, [x]), atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
def test_exports_for_images_of_any_size():
    module = MiniDL(3, 4, (4, 6)).eval()
    sizes = {2: torch.export.Dim("height", min=8, max=64), 3: torch.export.Dim("width", min=8)}
    x = torch.randn(1, 3, 12, 20)
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,)).module()
    for size in ((12, 20), (9, 31)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(program(x), module(x), atol=1e-5, rtol=1e-5)


def test_refuses_wrong_arguments():
    with pytest.raises(ValueError, match="pool_size"):
        MiniDL(3, 4, (0, 4))
    with pytest.raises(ValueError, match="norm 'LayerNorm'"):
        MiniDL(3, 4, norm="LayerNorm")
