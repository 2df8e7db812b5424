"""Masks in an id map stand for Detectron2's bitmaps, call by call."""

from __future__ import annotations

import pickle

import pytest
import torch
from detectron2.data.detection_utils import filter_empty_instances
from detectron2.structures import BitMasks, Boxes, Instances

from d2_cityscapes.structures import IdMapMasks

PICTURE = torch.tensor(
    [
        [26000, 26000, 7, 7, 24001, 7],
        [26000, 7, 7, 7, 7, 7],
        [7, 7, 26002, 26002, 26002, 7],
    ],
    dtype=torch.int32,
)
IDS = torch.tensor([26000, 24001, 26002, 26009], dtype=torch.int32)  # the last is not there


@pytest.fixture
def masks():
    return IdMapMasks(PICTURE, IDS)


@pytest.fixture
def bitmaps():
    return BitMasks(PICTURE[None] == IDS[:, None, None])


def test_the_same_bitmaps_boxes_and_areas(masks, bitmaps):
    assert isinstance(masks, BitMasks) and len(masks) == 4 and masks.image_size == (3, 6)
    assert masks.tensor.equal(bitmaps.tensor)
    assert all(a.equal(b) for a, b in zip(masks, bitmaps, strict=True))
    assert masks.area().tolist() == [3, 1, 3, 0]
    assert masks.nonempty().equal(bitmaps.nonempty())
    assert masks.get_bounding_boxes().tensor.equal(bitmaps.get_bounding_boxes().tensor)
    assert masks.get_bounding_boxes().tensor[1].tolist() == [4, 0, 5, 1]  # one pixel is 1 wide


@pytest.mark.parametrize(
    "item",
    [
        2,
        -1,
        slice(1, 3),
        torch.tensor([True, False, False, True]),
        torch.tensor([2, 2, 0]),
        torch.tensor([], dtype=torch.int64),
        [3, 1],
    ],
)
def test_indexing(masks, bitmaps, item):
    assert masks[item].tensor.equal(bitmaps[item].tensor)
    assert masks[item].id_maps is masks.id_maps  # no pixel is copied


def test_no_masks(masks):
    empty = masks[:0]
    assert len(empty) == 0 and empty.tensor.shape == (0, 3, 6)
    assert empty.area().shape == (0,) and empty.get_bounding_boxes().tensor.shape == (0, 4)
    assert empty.crop_and_resize(torch.zeros(0, 4), 28).shape == (0, 28, 28)


def test_targets_are_those_of_bitmaps():
    generator = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 40, (8, 16), generator=generator)
    picture = picture.repeat_interleave(12, dim=0).repeat_interleave(9, dim=1)
    ids = torch.arange(40)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([110.0, 70.0])
    size = torch.rand(40, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + size], dim=1)
    found = IdMapMasks(picture, ids).crop_and_resize(boxes, 28)
    expected = BitMasks(picture[None] == ids[:, None, None]).crop_and_resize(boxes, 28)
    assert found.dtype == torch.bool and expected.any()
    assert found.equal(expected)
    with pytest.raises(ValueError, match="3 boxes for 40 masks"):
        IdMapMasks(picture, ids).crop_and_resize(boxes[:3], 28)


def _sampled(masks):
    return masks[torch.tensor([2, 0, 0, 1, 2, 3, -4])]


SELECTIONS = {
    "sampled": _sampled,
    "none of them": lambda masks: _sampled(masks)[:0],
    "one of them": lambda masks: _sampled(masks)[1],
    "some of them": lambda masks: _sampled(masks)[torch.tensor([True, False] * 3 + [True])],
    "sampled again": lambda masks: _sampled(masks)[torch.tensor([6, 0])],
    "of some": lambda masks: masks[1:3][torch.tensor([1, 0, 1])],
    "together": lambda masks: type(masks).cat([_sampled(masks), masks[1:], _sampled(masks)[2:5]]),
}


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_targets_of_selected_masks(masks, bitmaps, device, select, fake_gpu):
    """Also where masks are chosen many times over, and more or less often than there are any."""
    found, expected = select(masks.to(device)), select(bitmaps)
    boxes = torch.tensor([[0.0, 0.0, 6.0, 3.0], [1.5, 0.5, 4.0, 2.5]]).repeat(7, 1)[: len(found)]
    targets = found.crop_and_resize(boxes.to(device), 5)
    assert targets.cpu().equal(expected.crop_and_resize(boxes, 5))
    assert found.to("cpu").tensor.equal(expected.tensor)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_targets_of_several_images(masks, bitmaps, device, fake_gpu):
    other = PICTURE.flip(1)
    joined = IdMapMasks.cat([_sampled(masks), IdMapMasks(other, IDS), masks[:1]]).to(device)
    expected = BitMasks.cat([_sampled(bitmaps), BitMasks(other == IDS[:, None, None]), bitmaps[:1]])
    boxes = torch.tensor([[0.0, 0.0, 6.0, 3.0]]).repeat(12, 1)
    for own, stock, number in [(joined, expected, 12), (joined[5:8], expected[5:8], 3)]:
        targets = own.crop_and_resize(boxes[:number].to(device), 5)
        assert targets.cpu().equal(stock.crop_and_resize(boxes[:number], 5))


def test_cat_keeps_shared_maps_once(masks, bitmaps):
    other = IdMapMasks(PICTURE.flip(1), IDS[:2])
    joined = IdMapMasks.cat([masks[2:], other, masks[:1]])
    expected = BitMasks.cat([bitmaps[2:], BitMasks(other.tensor), bitmaps[:1]])
    assert joined.tensor.equal(expected.tensor) and len(joined.id_maps) == 2
    assert joined.area().tolist() == [3, 0, 3, 1, 3]
    boxes = torch.tensor([[0.0, 0.0, 6.0, 3.0]]).repeat(5, 1)
    targets = joined.crop_and_resize(boxes, 3)
    assert targets.equal(expected.crop_and_resize(boxes, 3))
    assert IdMapMasks.cat([joined, joined[1:]]).tensor.equal(
        torch.cat([expected.tensor, expected.tensor[1:]])
    )


def test_in_instances(masks):
    instances = Instances((3, 6), gt_masks=masks, gt_boxes=Boxes(torch.ones(4, 4)))
    instances.gt_boxes = masks.get_bounding_boxes()
    assert len(filter_empty_instances(instances)) == 3
    both = Instances.cat([instances, instances[1:2]])
    assert both.gt_masks.area().tolist() == [3, 1, 3, 0, 1]
    assert instances.to("cpu").gt_masks.tensor.equal(masks.tensor)


def test_pickle_and_device(masks):
    clone = pickle.loads(pickle.dumps(masks))
    assert clone.tensor.equal(masks.tensor) and clone.device == torch.device("cpu")


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"ids \(1, 2\)"):
        IdMapMasks(PICTURE, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="map_index"):
        IdMapMasks(torch.stack([PICTURE, PICTURE]), IDS)
