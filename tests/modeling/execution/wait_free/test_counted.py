"""What the host knows of proposals, and what becomes of it."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.execution.wait_free.counted import (
    BatchNumbers,
    CountedBoxes,
    foreground_numbers,
    level_rule,
    select_foreground,
)
from d2_cityscapes.modeling.execution.wait_free.parts import stop_waiting
from d2_cityscapes.modeling.execution.wait_free.pooler import WaitFreePooler

BACKGROUND = 8


def make_pooler(levels: int = 3, kind: str = "ROIAlignV2") -> ROIPooler:
    scales = tuple(1 / (4 << level) for level in range(levels))
    return ROIPooler(5, scales, sampling_ratio=2, pooler_type=kind)


def make_proposals(pooler: ROIPooler, foreground=(3, 0, 7), others=(4, 9, 0)) -> list[Instances]:
    """Images with foreground, then background; boxes of 8 to 400 px."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for first, more in zip(foreground, others, strict=True):
        corner = torch.rand(first + more, 2, generator=generator) * 80
        side = 8 * 50 ** torch.rand(first + more, 2, generator=generator)
        image = Instances((256, 512))
        image.proposal_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
        classes = torch.randint(0, BACKGROUND, (first,), generator=generator)
        image.gt_classes = torch.cat([classes, torch.full((more,), BACKGROUND)])
        images.append(image)
    return images


def count(proposals: list[Instances], pooler: ROIPooler, device: str = "cpu") -> list[Instances]:
    """The same, counted."""
    lowest, highest, size, middle = level_rule(pooler)
    levels, fronts = [], []
    for image in proposals:
        area = image.proposal_boxes.area()
        level = torch.floor(middle + torch.log2(area.sqrt() / size)).clamp(lowest, highest)
        levels.append(level.long() - lowest)
        fronts.append(int((image.gt_classes != BACKGROUND).sum()))
    number = highest - lowest + 1
    front = torch.cat([level[:first] for level, first in zip(levels, fronts, strict=True)])
    batch = BatchNumbers(
        level_rule(pooler),
        tuple(torch.cat(levels).bincount(minlength=number).tolist()),
        tuple(front.bincount(minlength=number).tolist()),
    )
    counted = []
    for image, level, first in zip(proposals, levels, fronts, strict=True):
        own = image.to(device)
        own.proposal_boxes = CountedBoxes(
            own.proposal_boxes.tensor, levels=level.to(device), num_foreground=first, batch=batch
        )
        counted.append(own)
    return counted


def maps(levels: int = 3, channels: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(3, channels, 64 >> level, 128 >> level, generator=generator).requires_grad_()
        for level in range(levels)
    ]


@pytest.mark.parametrize("foreground", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIPool"])
def test_pooled_features_are_detectron2s(foreground, levels, kind):
    stock, ours = make_pooler(levels, kind), make_pooler(levels, kind)
    ours.__class__ = WaitFreePooler
    images = make_proposals(stock)
    counted = count(images, stock)
    if foreground:
        images, _ = select_foreground_proposals(images, BACKGROUND)
        counted, _ = select_foreground(counted, BACKGROUND)
    results = []
    for pooler, found in ((stock, images), (ours, counted)):
        features = maps(levels)
        pooled = pooler(features, [image.proposal_boxes for image in found])
        pooled.square().sum().backward()
        results.append([pooled, *(level.grad for level in features)])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_boxes_that_are_not_counted_are_pooled_too():
    stock, ours = make_pooler(), make_pooler()
    ours.__class__ = WaitFreePooler
    images = make_proposals(stock)
    counted = count(images, make_pooler(2))  # by the levels of another pooler
    for found in (images, counted, [images[0], *counted[1:]]):
        boxes = [image.proposal_boxes for image in found]
        assert torch.equal(ours(maps(), boxes), stock(maps(), boxes))


def test_pooling_counted_boxes_waits_for_nothing(fake_gpu):
    pooler = make_pooler()
    pooler.__class__ = WaitFreePooler
    images = count(make_proposals(pooler), pooler, device="cuda")
    features = [level.detach().to("cuda") for level in maps()]
    with fake_gpu.watch() as seen:
        pooler(features, [image.proposal_boxes for image in images])
        select_foreground(images, BACKGROUND)
    assert seen.total == 0, seen.table()


def test_foreground_is_detectron2s():
    pooler = make_pooler()
    images = make_proposals(pooler)
    expected, masks = select_foreground_proposals(images, BACKGROUND)
    for proposals in (images, count(images, pooler)):
        found, rows = select_foreground(proposals, BACKGROUND)
        every = torch.arange(sum(map(len, images)))
        assert torch.equal(every[rows], every[torch.cat(masks)])
        for ours, stock in zip(found, expected, strict=True):
            assert torch.equal(ours.gt_classes, stock.gt_classes)
            assert torch.equal(ours.proposal_boxes.tensor, stock.proposal_boxes.tensor)


def test_numbers_are_lost_with_the_boxes():
    pooler = make_pooler()
    counted = count(make_proposals(pooler), pooler)
    assert foreground_numbers(counted) == [3, 0, 7]
    assert foreground_numbers([]) is None
    for changed in (
        [image[torch.arange(len(image))] for image in counted],
        [image[:2] for image in counted],
        [image.to("cpu") for image in counted],
        [Instances.cat(counted)],
    ):
        assert foreground_numbers(changed) is None
    assert torch.equal(
        Instances.cat(counted).proposal_boxes.tensor,
        torch.cat([image.proposal_boxes.tensor for image in counted]),
    )


def test_a_pooler_alone_has_nothing_to_gain():
    with pytest.raises(D2CityscapesError, match=r"MODEL.WAIT_FREE: ROIPooler has no RPN"):
        stop_waiting(make_pooler())
