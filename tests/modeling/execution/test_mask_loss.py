"""Detectron2's mask loss without its waits: the same numbers, to the bit."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.modeling.roi_heads import mask_head as stock
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_cityscapes.modeling.execution.deferred_scalars import flush_scalars
from d2_cityscapes.modeling.execution.mask_loss import mask_rcnn_loss
from d2_cityscapes.modeling.execution.wait_free.counted import BatchNumbers, CountedBoxes
from d2_cityscapes.modeling.execution.wait_free.parts import stop_waiting
from d2_cityscapes.modeling.mask_head import MLPMaskHead, SoftmaxMaskRCNNHead
from d2_cityscapes.modeling.panoptic.instance_heads import SeamlessMaskHead
from d2_cityscapes.structures import IdMapMasks

CLASSES, SIDE = 3, 8
NUMBERS = ["mask_rcnn/accuracy", "mask_rcnn/false_positive", "mask_rcnn/false_negative"]


def regions(numbers, *, bitmaps=False, seed=0) -> list[Instances]:
    """Images of different sizes with so many foreground regions each."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for i, number in enumerate(numbers):
        size = (40, 60 + 8 * i)
        image = Instances(size)
        corner = torch.rand(number, 2, generator=generator) * 40 - 5
        side = torch.rand(number, 2, generator=generator) * 30
        image.proposal_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
        image.gt_classes = torch.randint(0, CLASSES, (number,), generator=generator)
        blocks = torch.randint(0, 4, (10, size[1] // 4), generator=generator)
        ids = blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1).to(torch.int16)
        masks = IdMapMasks(ids, torch.arange(4, dtype=torch.int16))
        if bitmaps:
            masks = BitMasks(masks.tensor)
        if number:  # as Detectron2's sampling: images without foreground may lack them
            image.gt_masks = masks[torch.randint(0, 4, (number,), generator=generator)]
        images.append(image)
    return images


def logits_for(numbers, channels=CLASSES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(sum(numbers), channels, SIDE, SIDE, generator=generator)


def outcome(loss, logits, images, device="cpu"):
    """Loss, gradient and what is logged."""
    logits = logits.clone().to(device).requires_grad_()
    with EventStorage(7) as storage:
        found = loss(logits, [image.to(device) for image in images])
        (found * 3).backward()
        flush_scalars(storage, wait=True)
    return found.detach().cpu(), logits.grad.cpu(), storage.latest()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("bitmaps", [False, True])
@pytest.mark.parametrize("channels", [1, CLASSES])
@pytest.mark.parametrize("numbers", [[5, 0, 9], [4], [0, 0]])
def test_loss_gradient_and_log_are_those_of_detectron2(
    numbers, channels, bitmaps, device, fake_gpu
):
    logits = logits_for(numbers, channels)
    bitmasks = regions(numbers, bitmaps=True)
    expected = outcome(stock.mask_rcnn_loss, logits, bitmasks)
    found = outcome(mask_rcnn_loss, logits, regions(numbers, bitmaps=bitmaps), device)
    assert found[0].equal(expected[0]) and found[1].equal(expected[1])
    assert found[2] == expected[2] and bool(found[2]) == (sum(numbers) > 0)


def test_pictures_at_their_period():
    pictures = []
    for loss in (stock.mask_rcnn_loss, mask_rcnn_loss):
        with EventStorage() as storage:
            for storage.iter in range(3):
                loss(logits_for([2]), regions([2]), 2)
        pictures.append(storage._vis_data)
    stock_ones, ours = pictures
    assert [(name, step) for name, _, step in ours] == [(n, step) for n, _, step in stock_ones]
    assert len(ours) == 4
    assert all(a.equal(b) for (_, a, _), (_, b, _) in zip(ours, stock_ones, strict=True))


def head_of(kind):
    torch.manual_seed(0)
    shape = ShapeSpec(channels=5, height=SIDE // 2, width=SIDE // 2)
    more = {"fc_dims": [7]} if kind is MLPMaskHead else {"conv_dims": [16, 16]}
    if kind is SeamlessMaskHead:
        more["background"] = CLASSES
    model = torch.nn.ModuleDict({"head": kind(shape, num_classes=CLASSES, loss_weight=2.0, **more)})
    if kind is MaskRCNNConvUpsampleHead:
        assert stop_waiting(model) == 1
        assert type(model["head"]) is not kind and isinstance(model["head"], kind)
    return model["head"]


@pytest.mark.parametrize(
    "kind", [MaskRCNNConvUpsampleHead, MLPMaskHead, SeamlessMaskHead, SoftmaxMaskRCNNHead]
)
def test_heads_never_wait_for_a_gpu(kind, fake_gpu):
    """Forward and backward: as on the CPU, and after one step without a wait."""
    numbers = [6, 0, 7]
    x = torch.randn(13, 5, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    losses = []
    for device in ("cpu", "cuda"):
        head, inputs = head_of(kind).to(device), x.clone().to(device).requires_grad_()
        images = [image.to(device) for image in regions(numbers)]
        with EventStorage() as storage:
            for storage.iter in range(3):
                with fake_gpu.watch() as seen:
                    loss = head(inputs, images)["loss_mask"]
                    loss.backward()
                    flush_scalars(storage)
                if kind is not SeamlessMaskHead:  # it alone is given background, by uncounted boxes
                    assert seen.total <= (storage.iter > 0), seen.table()
        losses.append((loss.detach().cpu(), inputs.grad.cpu()))
        assert "mask_rcnn/accuracy" in storage.latest()
    assert losses[0][0] > 0
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_seamless_head_does_not_wait_where_the_foreground_is_counted(fake_gpu):
    """It is given background too, here the last two regions of each image."""
    numbers, foreground = [6, 0, 7], [4, 0, 5]
    x = torch.randn(13, 5, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(1))
    found = []
    for device, counted in [("cpu", False), ("cuda", True)]:
        head = head_of(SeamlessMaskHead).to(device)
        images = [image.to(device) for image in regions(numbers)]
        for image, first in zip(images, foreground, strict=True):
            image.gt_classes[first:] = CLASSES
            if counted:
                image.proposal_boxes = CountedBoxes(
                    image.proposal_boxes.tensor,
                    levels=torch.zeros_like(image.gt_classes),
                    num_foreground=first,
                    batch=BatchNumbers((2, 5, 224, 4), (13,), (9,)),
                )
        inputs = x.to(device)
        with EventStorage(), fake_gpu.watch() as seen:
            loss = head(inputs, images)["loss_mask"]
            loss.backward()
        assert seen.total == 0, seen.table()
        found.append((loss.detach().cpu(), [p.grad.cpu() for p in head.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)
