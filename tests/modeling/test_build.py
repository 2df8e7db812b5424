"""build_model: every standard loss is (1 - w) times stock; freezing; errors."""

import gc
import logging

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.modeling import build_roi_heads
from torch.nn.modules.module import _global_module_registration_hooks

from d2_cityscapes.config import get_cfg
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.box_head import GIOU_LOSS
from d2_cityscapes.modeling.build import build_model
from tests.support.losses import losses_of

INSTANCE_LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}


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


# built by Detectron2 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "meta_architecture", ["GeneralizedRCNN", "StagedRCNN", "PanopticFPN", "SeamlessPanoptic"]
)
def test_detectron2s_builder_weights_every_loss_too(tiny_cfg, batch, meta_architecture):
    tiny_cfg.MODEL.META_ARCHITECTURE = meta_architecture
    losses = []
    for weight in (0.0, 0.1):
        tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = weight
        torch.manual_seed(0)
        losses.append(losses_of(build_detectron2_model(tiny_cfg), batch))
    stock, weighted = losses
    unweighted = {"loss_sem_seg"} if meta_architecture == "PanopticFPN" else set()  # none of ours
    for name, value in stock.items():
        factor = 1.0 if name in unweighted else 0.9
        assert torch.equal(weighted[name], value * factor), name
    assert weighted[GIOU_LOSS] > 0


def test_heads_by_themselves_leave_no_trace():
    """A model built later is not mistaken for theirs."""
    before = len(_global_module_registration_hooks)
    cfg = get_cfg()
    cfg.MODEL.ROI_HEADS.NAME = "GIoUROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.1
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2"]
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    heads = build_roi_heads(cfg, {"p2": ShapeSpec(channels=8, stride=4)})
    del heads
    gc.collect()
    assert len(_global_module_registration_hooks) == before


@pytest.mark.parametrize("kind", ["stage1", "stage4", "semantic/deeplabv3_R_50_768x1024"])
def test_the_options_of_a_config_act_in_detectron2s_builder(repository, datasets, kind):
    """What is frozen, its norms in training mode, and the dense options."""
    cfg = load_config(repository / "configs" / f"{kind}.yaml", [], train=False)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FREEZE.MODULES = ["backbone*"]
    cfg.MODEL.FREEZE.SCHEDULE = []
    cfg.SOLVER.CHANNELS_LAST = True
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.FOLD_FROZEN_NORM = False
    model = build_detectron2_model(cfg).train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert any(p.requires_grad for p in model.parameters())
    norms = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    inside = {id(layer) for layer in model.backbone.modules()}
    assert norms and all(layer.training != (id(layer) in inside) for layer in norms)
    weights = [p for p in model.backbone.parameters() if p.dim() == 4 and p.shape[-1] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


def test_a_schedule_that_nobody_carries_out_is_refused(tiny_cfg, batch):
    tiny_cfg.MODEL.META_ARCHITECTURE = "StagedRCNN"
    tiny_cfg.MODEL.FREEZE.MODULES = ["backbone"]
    tiny_cfg.MODEL.FREEZE.SCHEDULE = [[5, ["backbone.fpn_*"]]]
    model = build_detectron2_model(tiny_cfg)
    with pytest.raises(D2CityscapesError, match="FreezeHook"):
        losses_of(model, batch)
    assert len(model.eval()(batch)) == len(batch)


def test_a_staged_model_is_stock_bit_for_bit(tiny_cfg, batch):
    for ours, stock in (
        ("StagedRCNN", "GeneralizedRCNN"),
        ("StagedSegmentor", "SemanticSegmentor"),
    ):
        losses = []
        for name in (ours, stock):
            tiny_cfg.MODEL.META_ARCHITECTURE = name
            torch.manual_seed(0)
            losses.append(losses_of(build_detectron2_model(tiny_cfg), batch))
        assert losses[0].keys() == losses[1].keys()
        assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


@torch.no_grad()
@pytest.mark.parametrize("masks", [True, False])
def test_what_a_staged_model_finds_is_stock_bit_for_bit(tiny_cfg, batch, masks):
    """In images of another size than the wanted one; and before it is brought to that size."""
    tiny_cfg.MODEL.MASK_ON = masks
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    tiny_cfg.TEST.DETECTIONS_PER_IMAGE = 7
    found = []
    for name in ("StagedRCNN", "GeneralizedRCNN"):
        tiny_cfg.MODEL.META_ARCHITECTURE = name
        torch.manual_seed(0)
        model = build_detectron2_model(tiny_cfg).eval()
        images = [{"image": image["image"], "height": 90, "width": 150} for image in batch]
        raw = model.inference(images, do_postprocess=False)
        found.append([*(output["instances"] for output in model(images)), *raw])
    for own, stock in zip(*found, strict=True):
        assert len(own) == len(stock) > 0 and own.image_size == stock.image_size
        assert own.get_fields().keys() == stock.get_fields().keys()
        for name, value in stock.get_fields().items():
            other = own.get(name)
            assert getattr(other, "tensor", other).equal(getattr(value, "tensor", value)), name
