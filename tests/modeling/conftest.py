"""A model small enough for tests, and a batch for it."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances

import d2_cityscapes as d2c

HEIGHT, WIDTH = 64, 128


@pytest.fixture
def tiny_cfg() -> CfgNode:
    """Mask R-CNN with a ResNet-18 FPN of 64 channels and `GIoUROIHeads`, on the CPU."""
    cfg = d2c.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 40
    cfg.MODEL.ROI_HEADS.NAME = "GIoUROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 8
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 19
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    cfg.MODEL.SEM_SEG_HEAD.NORM = ""
    return cfg


@pytest.fixture
def panoptic_cfg(tiny_cfg: CfgNode) -> CfgNode:
    """`tiny_cfg` with a semantic head and panoptic fusion."""
    tiny_cfg.MODEL.META_ARCHITECTURE = "SeamlessPanoptic"
    return tiny_cfg


def make_input(boxes: list[tuple[int, int, int, int]], classes: list[int], seed: int = 0) -> dict:
    """One training input: noise with filled rectangles, road elsewhere, void in the top row."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    sem_seg = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    sem_seg[0] = 255
    for mask, (x0, y0, x1, y1), thing in zip(masks, boxes, classes, strict=True):
        mask[y0:y1, x0:x1] = True
        sem_seg[mask] = 11 + thing
    instances = Instances((HEIGHT, WIDTH))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances, "sem_seg": sem_seg}


@pytest.fixture
def batch() -> list[dict]:
    """Two images with three instances and one image without any."""
    return [
        make_input([(10, 10, 40, 40), (60, 20, 90, 50)], [0, 2], seed=1),
        make_input([(30, 5, 100, 60)], [4], seed=2),
        make_input([], [], seed=3),
    ]


@pytest.fixture
def empty_batch() -> list[dict]:
    """One image without instances."""
    return [make_input([], [], seed=4)]
