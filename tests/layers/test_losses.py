"""giou_loss: hand-worked values, properties, an independent slow version, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2_cityscapes.layers.losses import giou_loss

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
