"""Boxes reach the poolers as they are, whatever the precision of the maps."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution.exact_pooling import pool_exactly

TYPES = ["ROIAlign", "ROIAlignV2", "ROIPool"]


def pooler(kind: str) -> ROIPooler:
    """For maps of 256 x 512 at stride 4: an image of 1024 x 2048."""
    return ROIPooler(output_size=7, scales=(1 / 4,), sampling_ratio=2, pooler_type=kind)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(1, 4, 256, 512, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def boxes() -> list[Boxes]:
    """Small ones at the far end of the image, between the steps of bfloat16."""
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(40, 2, generator=generator) * torch.tensor([900.0, 400.0])
    corner += torch.tensor([1050.0, 550.0])
    size = 16 + 30 * torch.rand(40, 2, generator=generator)
    return [Boxes(torch.cat([corner, corner + size], dim=1))]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_features_are_those_of_the_true_boxes(kind, dtype, autocast, features, boxes):
    low = features.to(dtype)
    true = pooler(kind)([low.float()], boxes).to(dtype)
    exact = pooler(kind)
    assert pool_exactly(exact) == 1
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found = exact([low], boxes)
    assert found.dtype == dtype
    torch.testing.assert_close(found, true, rtol=0.02, atol=0.02)


def test_detectron2s_own_are_not(features, boxes):
    """What this is for: half of the value and more is beside the box."""
    low = features.bfloat16()
    true = pooler("ROIAlignV2")([low.float()], boxes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pooler("ROIAlignV2")([low], boxes).float()
    assert ((found - true).norm() / true.norm()).item() > 0.3


@pytest.mark.parametrize("kind", TYPES)
def test_in_float32_nothing_changes(kind, features, boxes):
    features.requires_grad_()
    stock = pooler(kind)
    exact = copy.deepcopy(stock)
    pool_exactly(exact)
    found = [p([features], boxes) for p in (stock, exact)]
    assert torch.equal(*found)
    gradients = [torch.autograd.grad(x.square().sum(), features)[0] for x in found]
    assert torch.equal(*gradients)


def test_the_poolers_of_a_model_are_exact_whoever_builds_it(tiny_cfg, boxes):
    maps = [torch.randn(1, 64, 256 >> i, 512 >> i).bfloat16() for i in range(4)]
    for build, meta in ((build_model, "GeneralizedRCNN"), (build_detectron2_model, "StagedRCNN")):
        tiny_cfg.MODEL.META_ARCHITECTURE = meta
        heads = build(tiny_cfg).roi_heads
        for pool in (heads.box_pooler, heads.mask_pooler):
            true = pool([x.float() for x in maps], boxes).bfloat16()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = pool(maps, boxes)
            torch.testing.assert_close(found, true, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_roi_pool_trains_in_mixed_precision_on_the_cpu(tiny_cfg, batch, dtype):
    """torchvision has a rule of autocast for it on CUDA only."""
    for head in (tiny_cfg.MODEL.ROI_BOX_HEAD, tiny_cfg.MODEL.ROI_MASK_HEAD):
        head.POOLER_TYPE = "ROIPool"
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    with EventStorage(), torch.autocast("cpu", dtype=dtype):
        loss = sum(model(batch).values())
    loss.backward()
    assert loss.isfinite()
    assert model.backbone.fpn_output2.weight.grad.abs().sum() > 0
