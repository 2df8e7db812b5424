"""DIoU and CIoU: by hand, against torchvision's, and for boxes that are none."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss

from d2_cityscapes.layers.losses import IOU_LOSSES, ciou_loss, diou_loss, giou_loss

LOSSES = [diou_loss, ciou_loss]
coordinate = st.integers(-50, 50).map(float)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)  # may be empty or inverted


def _boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 40
    size = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 30 + 1
    return torch.cat([corner, corner + size], dim=1)


@pytest.mark.parametrize(
    ("a", "b", "diou", "v"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 0.0, 0.0),
        # 50 of 150 common; centres 5 apart, hull 15 x 10
        ((0, 0, 10, 10), (5, 0, 15, 10), 1 - 1 / 3 + 25 / 325, 0.0),
        # contained, about one centre; shapes at 45 degrees and atan(0.2) differ by atan(2 / 3)
        ((0, 0, 10, 10), (4, 0, 6, 10), 0.8, 4 / math.pi**2 * math.atan(2 / 3) ** 2),
        ((0, 0, 1, 1), (9, 0, 10, 1), 1 + 81 / 101, 0.0),  # apart
        ((3, 3, 3, 3), (3, 3, 3, 3), 1.0, 0.0),  # the same point twice
        ((3, 3, 3, 3), (5, 7, 5, 7), 2.0, 0.0),  # two points
    ],
)  # fmt: skip
def test_by_hand(a, b, diou, v):
    pair = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert diou_loss(*pair).item() == pytest.approx(diou, abs=1e-12)
    iou = 0.2 if v else 0.0
    alpha = v / (1 - iou + v) if v else 0.0
    assert ciou_loss(*pair).item() == pytest.approx(diou + alpha * v, abs=1e-12)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(diou_loss, distance_box_iou_loss), (ciou_loss, complete_box_iou_loss)]
)
def test_they_and_their_gradients_are_torchvisions(ours, theirs):
    target, found = _boxes(200, 1), []
    for loss in (ours, theirs):
        pred = _boxes(200, 0).requires_grad_()
        value = loss(pred, target, reduction="sum") if loss is ours else loss(pred, target).sum()
        found.append((value, torch.autograd.grad(value, pred)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@given(a=box, b=box)
def test_the_gradient_is_finite_for_any_box(loss, a, b):
    pred = torch.tensor([a], requires_grad=True)
    loss(pred, torch.tensor([b]), reduction="sum").backward()
    assert torch.isfinite(pred.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_reductions_and_no_boxes(loss):
    pred, target = _boxes(5, 2), _boxes(5, 3)
    torch.testing.assert_close(loss(pred, target, "mean"), loss(pred, target).mean())
    empty = torch.zeros(0, 4, requires_grad=True)
    loss(empty, torch.zeros(0, 4), "mean").backward()
    assert empty.grad.shape == (0, 4)


def test_they_differ_and_have_names():
    pred, target = _boxes(5, 4), _boxes(5, 5)
    values = [loss(pred, target, "sum").item() for loss in IOU_LOSSES.values()]
    assert len(set(values)) == 3 and IOU_LOSSES["giou"] is giou_loss
