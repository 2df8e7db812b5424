"""Matching is Detectron2's to the bit, in memory that does not grow with the objects."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

from d2_cityscapes.modeling.execution.wait_free.matching import match_boxes


def make_boxes(number: int, seed: int, *, grid: float | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(number, 2, generator=generator) * 200
    size = 1 + torch.rand(number, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + size], dim=1)
    return boxes if grid is None else (boxes / grid).ceil() * grid


MATCHERS = {
    "rpn": Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
    "heads": Matcher([0.5], [0, 1], allow_low_quality_matches=False),
}


@pytest.mark.parametrize("matcher", MATCHERS.values(), ids=MATCHERS)
@pytest.mark.parametrize("objects", [0, 1, 7, 40])
@pytest.mark.parametrize("grid", [None, 16.0])  # on a grid, many boxes are equally good
@pytest.mark.parametrize("pairs", [1, 3000, 1 << 23])
def test_as_detectron2(matcher, objects, grid, pairs):
    truth, boxes = make_boxes(objects, 0, grid=grid), make_boxes(500, 1, grid=grid)
    boxes[::9] = boxes[0]  # equal to the last bit, in several parts
    if objects > 1:
        truth[1, 2] = truth[1, 0]  # without width: best IoU 0, shared by all boxes
    matches, labels = match_boxes(truth, boxes, matcher, pairs=pairs)
    expected = matcher(pairwise_iou(Boxes(truth), Boxes(boxes)))
    assert matches.dtype == torch.int64
    assert torch.equal(matches, expected[0])
    assert labels.dtype == torch.int8
    assert torch.equal(labels, expected[1])


def test_no_boxes():
    matches, labels = match_boxes(make_boxes(3, 0), torch.zeros(0, 4), MATCHERS["heads"])
    assert matches.shape == labels.shape == (0,)


def test_memory_is_bounded(fake_gpu):
    boxes = make_boxes(20_000, 1).to("cuda")
    pairs = 1 << 18

    def peak(objects: int) -> int:
        truth = make_boxes(objects, 0).to("cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        with fake_gpu.watch() as seen:
            match_boxes(truth, boxes, MATCHERS["rpn"], pairs=pairs)
        assert seen.total == 0, seen.table()
        return torch.cuda.max_memory_allocated() - before

    bound = 16 * pairs + 30 * len(boxes) + (1 << 20)  # pairs, results, what is not counted sharply
    assert peak(8) <= bound
    assert peak(64) <= bound
