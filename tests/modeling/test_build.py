"""build_model: every standard loss is (1 - w) times stock; freezing; errors."""

import logging

import pytest
import torch
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.utils.events import EventStorage

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.box_head import GIOU_LOSS
from d2_cityscapes.modeling.build import build_model

INSTANCE_LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}


def losses_of(model, inputs) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # the samplers draw at random
    model.train()
    with EventStorage():
        return model(inputs)


@pytest.mark.parametrize("meta_architecture", ["GeneralizedRCNN", "SeamlessPanoptic"])
def test_every_standard_loss_is_weighted_exactly(tiny_cfg, batch, meta_architecture):
    tiny_cfg.MODEL.META_ARCHITECTURE = meta_architecture
    torch.manual_seed(0)
    stock = losses_of(build_detectron2_model(tiny_cfg), batch)
    assert stock.keys() - {"loss_sem_seg"} == INSTANCE_LOSSES
    assert ("loss_sem_seg" in stock) == (meta_architecture == "SeamlessPanoptic")

    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.1
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    weighted = losses_of(model, batch)
    giou = weighted.pop(GIOU_LOSS)
    assert weighted.keys() == stock.keys()
    for name, value in stock.items():
        assert torch.equal(weighted[name], value * 0.9), name
    assert 0 < giou <= 0.2

    giou.backward()
    assert model.roi_heads.box_predictor.bbox_pred.weight.grad.abs().sum() > 0
    assert model.backbone.bottom_up.stem.conv1.weight.grad.abs().sum() > 0


def test_zero_weight_is_detectron2s_model(tiny_cfg, batch):
    losses = []
    for build in (build_model, build_detectron2_model):
        torch.manual_seed(0)
        losses.append(losses_of(build(tiny_cfg), batch))
    assert losses[0].keys() == losses[1].keys() == INSTANCE_LOSSES
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


def test_trains_on_an_image_without_instances(tiny_cfg, empty_batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.5
    model = build_model(tiny_cfg)
    losses = losses_of(model, empty_batch)
    assert losses[GIOU_LOSS] == 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_freezes_and_logs_a_table(tiny_cfg, batch, caplog):
    tiny_cfg.MODEL.FREEZE.MODULES = ["backbone.bottom_up", "backbone.fpn_*"]
    with caplog.at_level(logging.INFO, logger="d2_cityscapes"):
        model = build_model(tiny_cfg)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.roi_heads.parameters())
    assert "backbone.bottom_up" in caplog.text
    assert "trainable" in caplog.text
    sum(losses_of(model, batch).values()).backward()
    assert model.backbone.bottom_up.stem.conv1.weight.grad is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", 1.5], "between 0 and 1"),
        (
            ["MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", 0.1, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"],
            "uses StandardROIHeads",
        ),
        (
            [
                *("MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", 0.1),
                *("MODEL.META_ARCHITECTURE", "SemanticSegmentor"),
            ],
            "has no ROI heads",
        ),
        (["MODEL.FREEZE.MODULES", ["backbone.bottomup"]], "backbone.bottom_up"),
        (["MODEL.META_ARCHITECTURE", "SeamlesPanoptic"], "SeamlesPanoptic"),
    ],
)
def test_errors_are_one_line(tiny_cfg, overrides, message):
    tiny_cfg.merge_from_list(overrides)
    with pytest.raises(D2CityscapesError, match=message) as error:
        build_model(tiny_cfg)
    assert "\n" not in str(error.value)
