"""Losses: hand-worked and golden values, properties, independent slow versions, gradients."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d2_cityscapes.layers import losses
from d2_cityscapes.layers.losses import (
    bootstrapped_cross_entropy,
    giou_loss,
    map_cross_entropy,
    mean_of_hardest,
    upsampled_cross_entropy,
)

no_deadline = settings(deadline=None)  # a busy machine is no failure
coordinate = st.integers(-50, 50).map(float)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)  # may be empty or inverted
proper_box = st.tuples(coordinate, coordinate, st.integers(1, 60), st.integers(1, 60)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


def giou(a, b) -> float:
    loss = giou_loss(torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64))
    return 1 - loss.item()


def slow_giou(a, b) -> float:
    """From the definition, by counting the unit cells of boxes with integer corners."""

    def cells(x0, y0, x1, y1):
        return {(x, y) for x in range(int(x0), int(x1)) for y in range(int(y0), int(y1))}

    union, common = cells(*a) | cells(*b), cells(*a) & cells(*b)
    hull = cells(min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    return len(common) / len(union) - len(hull - union) / len(hull)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),  # the same box
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3),  # 50 of 150 common, hull is the union
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175 - 50 / 225),  # hull 15 x 15
        ((0, 0, 1, 1), (9, 0, 10, 1), -0.8),  # 8 of 10 hull cells are empty
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),  # touching edges share nothing
        ((0, 0, 10, 10), (2, 2, 4, 4), 0.04),  # contained
        ((3, 3, 3, 3), (0, 0, 10, 10), 0.0),  # a point inside a box
        ((3, 3, 3, 3), (3, 3, 3, 3), 0.0),  # the same point twice
        ((3, 3, 3, 3), (5, 7, 5, 7), -1.0),  # two points apart
        ((9, 9, 1, 1), (2, 2, 4, 4), 0.0),  # inverted: no area
    ],
)
def test_hand_values(a, b, expected):
    assert giou(a, b) == pytest.approx(expected, abs=1e-12)


@no_deadline
@given(box, box)
def test_symmetric_and_bounded(a, b):
    assert giou(a, b) == giou(b, a)
    assert -1 - 1e-12 <= giou(a, b) <= 1 + 1e-12


@no_deadline
@given(proper_box)
def test_of_itself_is_one(a):
    assert giou(a, a) == 1


@settings(no_deadline, max_examples=40)
@given(proper_box, proper_box)
def test_equals_cell_counting(a, b):
    assert giou(a, b) == pytest.approx(slow_giou(a, b), abs=1e-12)


@no_deadline
@given(box, box)
def test_gradient_is_finite_for_any_box(a, b):
    pred = torch.tensor([a], requires_grad=True)
    giou_loss(pred, torch.tensor([b]), reduction="sum").backward()
    assert torch.isfinite(pred.grad).all()


def test_gradient_equals_finite_differences():
    torch.manual_seed(0)
    corner, size = (
        torch.rand(2, 20, 2, dtype=torch.float64) * 50,
        torch.rand(2, 20, 2).double() * 30,
    )
    pred, target = (torch.cat([c, c + s + 1], dim=1) for c, s in zip(corner, size, strict=True))
    assert torch.autograd.gradcheck(lambda p: giou_loss(p, target), pred.requires_grad_())


def test_pulls_disjoint_boxes_together():
    pred = torch.tensor([[0.0, 0.0, 10.0, 10.0]], requires_grad=True)
    giou_loss(pred, torch.tensor([[50.0, 0.0, 60.0, 10.0]]), reduction="sum").backward()
    assert pred.grad[0, 2] < 0  # growing to the right lowers the loss


def test_reductions():
    pred = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 1.0, 1.0]])
    target = torch.tensor([[5.0, 0.0, 15.0, 10.0], [9.0, 0.0, 10.0, 1.0]])
    torch.testing.assert_close(giou_loss(pred, target), torch.tensor([2 / 3, 1.8]))
    assert giou_loss(pred, target, "sum").item() == pytest.approx(2 / 3 + 1.8)
    assert giou_loss(pred, target, "mean").item() == pytest.approx((2 / 3 + 1.8) / 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_no_boxes_give_zero_with_a_graph(reduction):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = giou_loss(pred, torch.zeros(0, 4), reduction)
    loss.backward()
    assert loss.item() == 0
    assert pred.grad.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_is_float32_under_autocast(dtype):
    pred = torch.tensor([[0.0, 0.0, 1504.0, 904.0]], dtype=dtype)  # area 1.36e6 overflows float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = giou_loss(pred, torch.tensor([[0.0, 0.0, 752.0, 904.0]]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 - 0.5, abs=1e-2)


def test_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"\(R, 4\)"):
        giou_loss(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="reduction"):
        giou_loss(torch.zeros(3, 4), torch.zeros(3, 4), "average")


def logits_of(pixel_losses) -> torch.Tensor:
    """(1, 2, H, W) logits whose cross entropy with class 0 is `pixel_losses`, (H, W), above 0."""
    wanted = torch.tensor(pixel_losses, dtype=torch.float64)
    return torch.stack([torch.zeros_like(wanted), wanted.expm1().log()])[None]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (0.25, (8 + 7) / 2),  # 1.5 of 6 pixels, rounded up
        (0.5, (8 + 7 + 3) / 3),
        (5 / 6, (8 + 7 + 3 + 2 + 0) / 5),  # more than there are beside void
        (1.0, 20 / 6),  # void counts
    ],
)
def test_hardest_pixels_by_hand(top_k, expected):
    logits = logits_of([[3.0, 9.0, 8.0], [2.0, 9.0, 7.0]])
    target = torch.tensor([[[0, 255, 0], [0, 255, 0]]])
    loss = bootstrapped_cross_entropy(logits, target, top_k)
    assert loss.item() == pytest.approx(expected)


def test_each_image_has_its_own_hardest_pixels():
    images = [logits_of([[1.0, 2.0]]), logits_of([[30.0, 40.0]])]
    loss = bootstrapped_cross_entropy(torch.cat(images), torch.zeros(2, 1, 2).long(), 0.5)
    assert loss.item() == pytest.approx((2 + 40) / 2)


def test_only_the_hardest_pixels_have_a_gradient():
    logits = logits_of([[3.0, 9.0, 8.0], [2.0, 9.0, 7.0]]).requires_grad_()
    target = torch.tensor([[[0, 7, 0], [0, 7, 0]]], dtype=torch.uint8)
    bootstrapped_cross_entropy(logits, target, 0.25, ignore_value=7).backward()
    moved = logits.grad[0].abs().sum(dim=0) > 0
    assert moved.tolist() == [[False, False, True], [False, False, True]]


@pytest.fixture(scope="module")
def golden(repository):
    return np.load(repository / "tests" / "golden" / "semantic_loss.npz")


def test_golden_losses(golden):
    cases = [name.removesuffix("/num_images") for name in golden if name.endswith("/num_images")]
    assert cases
    for case in cases:
        count = int(golden[f"{case}/num_images"])
        for name, top_k in (("none", 1.0), ("0.25", 0.25), ("0.10", 0.1), ("1.00", 1.0)):
            logits = [
                torch.from_numpy(golden[f"{case}/logits{j}"]).requires_grad_() for j in range(count)
            ]
            labels = [torch.from_numpy(golden[f"{case}/labels{j}"]) for j in range(count)]
            images = [
                bootstrapped_cross_entropy(x[None], y[None], top_k)
                for x, y in zip(logits, labels, strict=True)
            ]
            loss = torch.stack(images).mean()
            expected = golden[f"{case}/loss_ohem_{name}"].item()
            assert loss.item() == pytest.approx(expected, abs=1e-5, rel=1e-5)
            loss.backward()
            for j, x in enumerate(logits):
                total = golden[f"{case}/grad_abs_sum_ohem_{name}"][j]
                assert x.grad.abs().sum().item() == pytest.approx(total, rel=1e-4)
                moved = golden[f"{case}/grad_nonzero_pixels_ohem_{name}"][j]
                assert (x.grad.abs().sum(dim=0) > 0).sum() == moved


def test_only_void_gives_zero_with_a_graph():
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = bootstrapped_cross_entropy(logits, torch.full((2, 4, 5), 255))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@no_deadline
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 20), st.floats(0, 1))
def test_equals_sorting(height, width, twentieths, void):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, height, width, dtype=torch.float64)
    target = torch.randint(4, (2, height, width))
    target[torch.rand(target.shape) < void] = 255
    expected = 0.0
    for x, y in zip(logits.exp() / logits.exp().sum(1, keepdim=True), target, strict=True):
        of_pixels = sorted(
            0.0 if y[i, j] == 255 else -math.log(x[y[i, j], i, j])
            for i in range(height)
            for j in range(width)
        )
        kept = math.ceil(Fraction(twentieths, 20) * height * width)
        expected += sum(of_pixels[-kept:]) / kept / 2
    loss = bootstrapped_cross_entropy(logits, target, twentieths / 20)
    assert loss.item() == pytest.approx(expected)


def test_all_pixels_without_void_are_the_plain_cross_entropy():
    logits, target = torch.randn(2, 5, 6, 7), torch.randint(5, (2, 6, 7))
    torch.testing.assert_close(
        bootstrapped_cross_entropy(logits, target, 1.0), F.cross_entropy(logits, target)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropy_is_float32_under_autocast(dtype):
    logits = torch.randn(1, 3, 4, 5).to(dtype).requires_grad_()
    target = torch.randint(3, (1, 4, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = bootstrapped_cross_entropy(logits, target)
        of_pixels = upsampled_cross_entropy(logits[0], target[0], 1)
    assert loss.dtype == of_pixels.dtype == torch.float32
    torch.testing.assert_close(loss, bootstrapped_cross_entropy(logits.float(), target))
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@settings(no_deadline, max_examples=40)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    scale=st.sampled_from([1, 2, 4]),
    cropped=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    rows=st.integers(1, 4),
)
def test_bands_equal_the_whole_picture(size, scale, cropped, rows):
    torch.manual_seed(0)
    logits = torch.randn(3, *size, dtype=torch.float64, requires_grad=True)
    height, width = (max(n * scale - cut, 1) for n, cut in zip(size, cropped, strict=True))
    target = torch.randint(4, (height, width))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "_BAND", rows * 3 * scale * scale * size[1])
        found = upsampled_cross_entropy(logits, target, scale, ignore_value=3)
    whole = F.interpolate(logits[None], scale_factor=scale, mode="bilinear")[..., :height, :width]
    expected = F.cross_entropy(whole, target[None], ignore_index=3, reduction="none")[0]
    torch.testing.assert_close(found, expected)
    weights = torch.randn(height, width, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weights).sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_bands_on_a_gpu(fake_gpu, monkeypatch):
    """Twice as large, to the same losses and gradients, without a wait."""
    monkeypatch.setattr(losses, "_BAND", 3 * 16 * 8)  # one row of cells
    logits = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    target = torch.arange(24 * 32).view(24, 32) % 4
    found = []
    for device in ("cpu", "cuda"):
        own, wanted = logits.clone().to(device).requires_grad_(), target.to(device)
        with fake_gpu.watch() as seen:
            of_pixels = upsampled_cross_entropy(own, wanted, 4, ignore_value=3)
            of_pixels.mean().backward()
        found.append((of_pixels.detach().cpu(), own.grad.cpu()))
    assert seen.total == 0, seen.table()
    assert seen.operations["aten::upsample_bilinear2d"] == 2 * 3  # forward, and again
    torch.testing.assert_close(*found)


def test_cross_entropy_refuses_wrong_arguments():
    logits, target = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5).long()
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 5\) and \(4, 5\)"):
        bootstrapped_cross_entropy(logits, target[0])
    for top_k in (0, 1.1):
        with pytest.raises(ValueError, match="top_k"):
            mean_of_hardest(torch.zeros(1, 2, 2), top_k)
    with pytest.raises(ValueError, match="larger than logits"):
        upsampled_cross_entropy(logits[0], torch.zeros(9, 10).long(), 2)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_cross_entropy_of_maps_by_deterministic_operations(reduction):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=generator, requires_grad=True)
    target = torch.randint(0, 5, (2, 6, 7), generator=generator)
    target[0, :2] = 255
    options = {"ignore_value": 255, "reduction": reduction}
    stock = F.cross_entropy(logits, target, ignore_index=255, reduction=reduction)
    assert torch.equal(map_cross_entropy(logits, target, **options), stock)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with torch.profiler.profile() as seen:
            ours = map_cross_entropy(logits, target, **options)
    finally:
        torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(ours, stock)
    found, expected = (torch.autograd.grad(loss, logits)[0] for loss in (ours, stock))
    torch.testing.assert_close(found, expected)
    assert any(event.name == "aten::sum" for event in seen.events()), "not summed by the loss"
