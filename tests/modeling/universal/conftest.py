"""Networks small enough for tests, and a batch for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances

import d2_cityscapes as d2c
from d2_cityscapes.structures import IdMapMasks

HEIGHT, WIDTH = 64, 128
MASK2FORMER: dict[str, Any] = {
    "num_queries": 20,
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "num_attention_heads": 4,
    "train_num_points": 64,
    "backbone_config": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 16, 16, 32],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    },
}
SWIN: dict[str, Any] = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
EOMT: dict[str, Any] = {
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_blocks": 2,
    "num_upscale_blocks": 1,
    "num_register_tokens": 2,
    "num_queries": 20,
    "train_num_points": 64,
}


def universal_cfg(name: str, values: dict[str, Any]) -> CfgNode:
    cfg = d2c.get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "UniversalSegmentor"
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.UNIVERSAL.NAME = name
    cfg.MODEL.UNIVERSAL.CONFIG = CfgNode(values, new_allowed=True)
    cfg.INPUT.FORMAT = "RGB"
    return cfg


@pytest.fixture(params=["mask2former", "eomt"])
def cfg(request: pytest.FixtureRequest) -> CfgNode:
    """Of each network."""
    return universal_cfg(request.param, {"mask2former": MASK2FORMER, "eomt": EOMT}[request.param])


@pytest.fixture
def eomt_cfg() -> CfgNode:
    return universal_cfg("eomt", EOMT)


@pytest.fixture
def mask2former_cfg() -> CfgNode:
    return universal_cfg("mask2former", MASK2FORMER)


def make_input(things: list[tuple[int, int, int, int]], *, void: bool = False) -> dict[str, Any]:
    """Sky above road, and cars in boxes (x0, y0, x1, y1); void in the top row, or everywhere."""
    generator = torch.Generator().manual_seed(len(things))
    ids = torch.full((HEIGHT, WIDTH), 7, dtype=torch.int16)
    ids[: HEIGHT // 2] = 23
    sem_seg = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    sem_seg[: HEIGHT // 2] = 10
    for number, (x0, y0, x1, y1) in enumerate(things):
        ids[y0:y1, x0:x1] = 26000 + number
        sem_seg[y0:y1, x0:x1] = 13
    sem_seg[: HEIGHT if void else 1] = 255
    instances = Instances((HEIGHT, WIDTH))
    instances.gt_boxes = Boxes(torch.tensor(things, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.full((len(things),), 2)
    numbers = torch.arange(26000, 26000 + len(things), dtype=torch.int16)
    instances.gt_masks = IdMapMasks(ids, numbers)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8, generator=generator)
    return {"image": image, "sem_seg": sem_seg, "instances": instances}


@pytest.fixture
def batch() -> list[dict[str, Any]]:
    """Two cars, and a picture without any."""
    return [make_input([(10, 30, 40, 60), (60, 20, 90, 50)]), make_input([])]
