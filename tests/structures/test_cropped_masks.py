"""Masks held as crops are the masks that were put in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.modeling.panoptic import postprocessing
from d2_cityscapes.modeling.panoptic.fusion import fuse_panoptic
from d2_cityscapes.modeling.panoptic.postprocessing import crop_masks, paste_masks
from d2_cityscapes.structures import CroppedMasks
from d2_cityscapes.structures.cropped_masks import Crop

SIZE = (40, 70)


@pytest.fixture
def bitmaps() -> torch.Tensor:
    """(3, 40, 70): one anywhere, one that reaches two sides, an empty one."""
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 5:12, 20:31] = torch.rand(7, 11) > 0.4
    masks[1, :6, 60:] = True
    return masks


@pytest.fixture
def cropped(bitmaps: torch.Tensor) -> CroppedMasks:
    places = ((5, 12, 20, 31), (0, 6, 60, 70), (0, 0, 0, 0))
    crops = [
        Crop(y0, x0, own[y0:y1, x0:x1].numpy())
        for own, (y0, y1, x0, x1) in zip(bitmaps, places, strict=True)
    ]
    return CroppedMasks(SIZE, crops)


def test_they_read_as_a_tensor_does(bitmaps: torch.Tensor, cropped: CroppedMasks) -> None:
    assert len(cropped) == 3 and cropped.shape == tuple(bitmaps.shape)
    assert cropped.tensor.equal(bitmaps)
    assert torch.stack(list(cropped)).equal(bitmaps)
    assert cropped[0].equal(bitmaps[0])
    for window in (np.s_[3:8, 25:70], np.s_[0:40, 0:70], np.s_[10:10, 0:5], np.s_[30:38, 2:9]):
        assert cropped[(0, *window)].equal(bitmaps[(0, *window)])
    for chosen in (torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, None)):
        assert cropped[chosen].tensor.equal(bitmaps[chosen])


def test_they_live_in_instances(bitmaps: torch.Tensor, cropped: CroppedMasks) -> None:
    found = Instances(SIZE, pred_masks=cropped, scores=torch.tensor([0.9, 0.2, 0.7]))
    kept = found[found.scores > 0.5].to("cpu")
    assert kept.pred_masks.tensor.equal(bitmaps[[0, 2]])


@pytest.mark.parametrize("at_once", [2**22, 100])
def test_pasted_fused_and_painted_they_are_the_same(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of rows is sampled together."""
    generator = torch.Generator().manual_seed(0)
    boxes = torch.tensor(
        [[3.2, 4.5, 40.0, 38.0], [30.0, 2.0, 69.5, 20.0], [60.0, 30.0, 69.0, 39.9]]
    )
    cells = torch.rand(3, 28, 28, generator=generator)
    whole = paste_masks(cells, boxes, SIZE)
    monkeypatch.setattr(postprocessing, "_AT_ONCE", at_once)
    assert paste_masks(cells, boxes, SIZE).equal(whole)
    cropped = crop_masks(cells, boxes, SIZE)
    assert cropped.tensor.equal(whole) and whole.any(dim=(1, 2)).all()
    found = [
        Instances(
            SIZE,
            pred_boxes=Boxes(boxes),
            pred_masks=masks,
            scores=torch.tensor([0.9, 0.6, 0.8]),
            pred_classes=torch.tensor([0, 2, 2]),
        )
        for masks in (whole, cropped)
    ]
    labels = torch.randint(0, 19, SIZE, generator=generator)
    (a, a_info), (b, b_info) = (fuse_panoptic(labels, own, stuff_area_limit=1) for own in found)
    assert a.equal(b) and a_info == b_info
    a, b = (ids_of_output({"instances": own}) for own in found)
    assert (a == b).all() and len(np.unique(a)) == 4
    assert len(np.unique(ids_of_output({"instances": found[1]}, score_threshold=0.7))) == 3
