"""A batch without a pixel that counts: a semantic loss of 0 with gradients of zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import PanopticFPN, SemanticSegmentor
from detectron2.utils.events import EventStorage

from d2_cityscapes.modeling.build import build_model
from tests.support.losses import losses_of

MODELS = ["StagedSegmentor", "SeamlessPanoptic"]


@pytest.fixture(params=MODELS)
def model(request, tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE = request.param
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    if request.param == "StagedSegmentor":
        tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.0
    torch.manual_seed(0)
    return build_model(tiny_cfg).train()


def void(batch: list[dict]) -> list[dict]:
    return [{**x, "sem_seg": torch.full_like(x["sem_seg"], 255)} for x in batch]


def test_void_alone(model, batch):
    losses = losses_of(model, void(batch[:2]))
    assert losses["loss_sem_seg"].item() == 0.0
    sum(losses.values()).backward()
    grads = [p.grad for p in model.sem_seg_head.parameters() if p.grad is not None]
    assert grads and all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_bit_for_bit_stock_where_a_pixel_counts(model, batch):
    mixed = [void(batch)[0], copy.deepcopy(batch[1])]
    mixed[1]["sem_seg"].fill_(255)[3, :2] = torch.tensor([7, 8])
    losses = losses_of(model, mixed)
    stock = SemanticSegmentor if isinstance(model, SemanticSegmentor) else PanopticFPN
    torch.manual_seed(1)
    with EventStorage():
        assert torch.equal(losses["loss_sem_seg"], stock.forward(model, mixed)["loss_sem_seg"])
    assert losses["loss_sem_seg"] > 0


def test_nan_of_another_cause_stays(model, batch):
    with torch.no_grad():
        model.sem_seg_head.predictor.bias.fill_(float("nan"))
    assert losses_of(model, batch[:2])["loss_sem_seg"].isnan()
