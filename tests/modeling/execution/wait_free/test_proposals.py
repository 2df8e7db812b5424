"""The proposals of a batch are those that Detectron2 finds image by image."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.structures import Boxes

from d2_cityscapes.modeling.execution.wait_free import proposals as module
from d2_cityscapes.modeling.execution.wait_free.proposals import top_proposals

SIZES = [(96, 200), (128, 160), (90, 90)]
LEVELS = (150, 60, 9)
TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


def predictions(*, grid: float | None, dtype=torch.float32):
    """Anchors, logits and deltas. On a grid, also after the transform."""
    generator = torch.Generator().manual_seed(0)
    anchors, logits, deltas = [], [], []
    for number in LEVELS:
        corner = torch.rand(number, 2, generator=generator) * torch.tensor([180.0, 110.0]) - 10
        size = 4 + torch.rand(number, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + size], dim=1)
        boxes = boxes if grid is None else (boxes / grid).round() * grid
        anchors.append(Boxes(boxes))
        logits.append(torch.randn(3, number, generator=generator).to(dtype))
        noise = 0.1 * torch.randn(3, number, 4, generator=generator)
        deltas.append((noise if grid is None else noise * 0).to(dtype))
    return anchors, logits, deltas


def stocks(anchors, logits, deltas, **options):
    boxes = [
        torch.stack([TRANSFORM.apply_deltas(own, places.tensor) for own in level])
        for level, places in zip(deltas, anchors, strict=True)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=logits[0].dtype == torch.bfloat16):
        return find_top_rpn_proposals(boxes, logits, SIZES, training=True, **options)


@pytest.mark.parametrize("grid", [None, 0.5])
@pytest.mark.parametrize("together", [25_000, 450, 1])  # all, two, one image at once
@pytest.mark.parametrize("smallest", [0.0, 12.0])
@pytest.mark.parametrize("most", [1000, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_detectron2(monkeypatch, grid, together, smallest, most, dtype):
    monkeypatch.setattr(module, "_MOST_BOXES", together)
    options = {
        "nms_thresh": 0.6,
        "pre_nms_topk": 100,
        "post_nms_topk": most,
        "min_box_size": smallest,
    }
    inputs = predictions(grid=grid, dtype=dtype)
    ours = top_proposals(*inputs, SIZES, transform=TRANSFORM, **options)
    for found, expected in zip(ours, stocks(*inputs, **options), strict=True):
        assert found.image_size == expected.image_size
        assert found.proposal_boxes.tensor.dtype == torch.float32
        assert torch.equal(found.objectness_logits, expected.objectness_logits)
        torch.testing.assert_close(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
        if grid is not None:
            assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)


OPTIONS = {"nms_thresh": 0.7, "pre_nms_topk": 50, "post_nms_topk": 50, "min_box_size": 0.0}


def test_images_without_a_box():
    anchors, logits, deltas = predictions(grid=0.5)
    for level in anchors:
        level.tensor[:, 2:] = level.tensor[:, :2]
    ours = top_proposals(anchors, logits, deltas, SIZES, transform=TRANSFORM, **OPTIONS)
    assert [len(found) for found in ours] == [0, 0, 0]


@pytest.mark.parametrize("what", ["logits", "deltas"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite(what, value):
    inputs = dict(zip(("anchors", "logits", "deltas"), predictions(grid=None), strict=True))
    inputs[what][1][2, 7] = value
    if what == "deltas":
        inputs["logits"][1][2, 7] = 100  # else nobody would look at it
    elif value != value:
        inputs[what][1][2] = value
    with pytest.raises(FloatingPointError, match="Training has diverged"):
        top_proposals(**inputs, image_sizes=SIZES, transform=TRANSFORM, **OPTIONS)


def test_two_waits(fake_gpu):
    anchors, logits, deltas = predictions(grid=None)
    inputs = ([level.to("cuda") for level in part] for part in (anchors, logits, deltas))
    inputs = list(inputs)
    with fake_gpu.watch() as seen:
        top_proposals(*inputs, SIZES, transform=TRANSFORM, **OPTIONS)
    assert seen.total == 2, seen.table()
