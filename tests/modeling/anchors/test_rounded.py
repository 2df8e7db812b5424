"""Anchors of torchvision: whole pixels, and its distances where a map does not divide the image."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import build_anchor_generator
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from d2_cityscapes.config import get_cfg
from d2_cityscapes.modeling.anchors.rounded import RoundedAnchorGenerator

SIZES = [[32], [64], [128], [256], [512]]
RATIOS = [0.5, 1.0, 2.0]
STRIDES = [4, 8, 16, 32, 64]


def maps(height: int, width: int) -> list[torch.Tensor]:
    """P2 to P5 of a padded image, and P6 pooled from P5."""
    found = [torch.zeros(1, 1, height // s, width // s) for s in STRIDES[:4]]
    return [*found, torch.nn.functional.max_pool2d(found[-1], 1, stride=2)]


def test_an_anchor_by_hand():
    """32 px, height / width 0.5: 45.25 x 22.63, whose half sides are 22.6 and 11.3."""
    generator = RoundedAnchorGenerator(sizes=[[32]], aspect_ratios=[RATIOS], strides=[4])
    cells = next(iter(generator.cell_anchors))
    assert cells.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


@pytest.mark.parametrize("size", [(128, 192), (800, 1344), (96, 160), (32, 32)])
@pytest.mark.parametrize("sizes", [SIZES, [[20, 33], [64, 70], [128, 99], [256, 300], [512, 640]]])
def test_they_are_torchvisions(size, sizes):
    """Heights of 800 and 96 have an odd number of cells in P5, so that P6 does not divide them."""
    theirs = AnchorGenerator(tuple(map(tuple, sizes)), (tuple(RATIOS),) * 5)
    features = maps(*size)
    image = ImageList(torch.zeros(1, 3, *size), [size])
    expected = theirs(image, features)[0]
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RoundedAnchorGenerator"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [RATIOS]
    ours = build_anchor_generator(cfg, [ShapeSpec(channels=1, stride=s) for s in STRIDES])
    found = torch.cat([boxes.tensor for boxes in ours(features)])
    assert ours.num_anchors == theirs.num_anchors_per_location()
    assert torch.equal(found, expected)


def test_on_a_level_that_does_not_divide_the_image_they_stand_closer():
    generator = RoundedAnchorGenerator(sizes=SIZES, aspect_ratios=[RATIOS], strides=STRIDES)
    boxes = generator(maps(800, 1344))[-1].tensor.view(13, 21, 3, 4)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    assert centres[1, 0, 0].tolist() == [0, 800 // 13]  # 61
    assert centres[0, 1, 0].tolist() == [1344 // 21, 0]  # 64
