"""Backbone, RPN head and ROI heads of the Seamless model, each for itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.proposal_generator.rpn import build_rpn_head
from detectron2.modeling.roi_heads import build_box_head, build_mask_head, build_roi_heads
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import d2_cityscapes as d2c
from d2_cityscapes.convert import torchvision_to_detectron2
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling import SeamlessMaskHead

K = 8
BODY = "backbone.bottom_up."


@pytest.fixture
def cfg(tiny_cfg) -> CfgNode:
    """`tiny_cfg` with the parts of the Seamless model and batch norm in all of them."""
    model = tiny_cfg.MODEL
    model.BACKBONE.NAME = "build_seamless_resnet_fpn_backbone"
    model.RPN.HEAD_NAME = "SeamlessRPNHead"
    model.ROI_HEADS.NAME = "SeamlessROIHeads"
    model.ROI_BOX_HEAD.NAME = "SeamlessBoxHead"
    model.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    model.ROI_MASK_HEAD.NAME = "SeamlessMaskHead"
    for part in (model.FPN, model.RPN, model.ROI_BOX_HEAD, model.ROI_MASK_HEAD):
        part.NORM = "BN"
    torch.manual_seed(0)
    return tiny_cfg


# --- backbone ---


def leaky_torchvision(depth: int) -> nn.Module:
    """torchvision's ResNet with leaky ReLUs, and with norms as after a training."""
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in list(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
        if hasattr(module, "relu"):
            module.relu = nn.LeakyReLU(0.01)
    return model.eval()


@pytest.mark.parametrize("depth", [18, 50])
@torch.no_grad()
def test_the_body_is_torchvisions_with_leaky_relus(cfg, depth):
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    theirs, ours = leaky_torchvision(depth), build_backbone(cfg).bottom_up.eval()
    weights = torchvision_to_detectron2(theirs.state_dict()).tensors
    ours.load_state_dict({name.removeprefix(BODY): t for name, t in weights.items()}, strict=True)
    x = torch.randn(2, 3, 64, 96)
    found = ours(x)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    for k in range(1, 5):
        x = getattr(theirs, f"layer{k}")(x)
        assert (x < 0).any(), "what a ReLU would have cut"
        torch.testing.assert_close(found[f"res{k + 1}"], x, rtol=1e-4, atol=1e-4)


def test_without_norms_in_the_fpn_tensors_have_the_names_of_the_stock_backbone(cfg):
    cfg.MODEL.FPN.NORM = ""
    ours = build_backbone(cfg).state_dict()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    stock = build_backbone(cfg).state_dict()
    shapes = {name: tensor.shape for name, tensor in ours.items()}
    assert {name: tensor.shape for name, tensor in stock.items()}.items() <= shapes.items()
    assert shapes.keys() - stock.keys() == {"top_block.p6.weight", "top_block.p6.bias"}


@torch.no_grad()
def test_p6_and_p7_are_convolutions_on_c5(cfg):
    cfg.MODEL.FPN.EXTRA_LEVELS = 2
    backbone = build_backbone(cfg).eval()
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        f"p{k}": 2**k for k in range(2, 8)
    }
    x = torch.randn(1, 3, 64, 128)
    levels, expected = backbone(x), backbone.bottom_up(x)["res5"]
    for name in ("p6", "p7"):
        conv = getattr(backbone.top_block, name)
        expected = F.conv2d(expected, conv.weight, stride=2, padding=1)
        expected = F.leaky_relu(expected / (1 + 1e-5) ** 0.5, 0.01)  # an untrained norm
        torch.testing.assert_close(levels[name], expected, rtol=1e-4, atol=1e-5)
    assert levels["p7"].shape[-2:] == (1, 1)


@torch.no_grad()
def test_every_level_is_activated(cfg):
    """Normalised over the batch and then through a leaky ReLU: of mean 0 before, not after."""
    levels = build_backbone(cfg).train()(torch.randn(2, 3, 128, 256))
    for name, x in levels.items():
        before = torch.where(x < 0, x / 0.01, x)
        assert before.mean().abs() < 1e-3, name
        assert before.std() == pytest.approx(1, abs=0.1), name


def test_stock_freezing_reaches_the_blocks(cfg):
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    backbone = build_backbone(cfg)
    trained = {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}
    assert not trained & {"stem", "res2"}
    assert {"res3", "res4", "res5"} <= trained


def test_deformable_blocks_are_refused(cfg):
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 256
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    with pytest.raises(D2CityscapesError, match="DEFORM_ON_PER_STAGE to False"):
        build_backbone(cfg)


# --- RPN head ---


def rpn_head(cfg: CfgNode) -> nn.Module:
    return build_rpn_head(cfg, [ShapeSpec(channels=64, stride=2**k) for k in range(2, 7)])


@torch.no_grad()
def test_rpn_head(cfg):
    head = rpn_head(cfg).eval()
    assert head.conv.bias is None
    x = torch.randn(1, 64, 5, 7)
    (logits,), (deltas,) = head([x])
    hidden = F.conv2d(x, head.conv.weight, padding=1) / (1 + 1e-5) ** 0.5
    hidden = F.leaky_relu(hidden, 0.01)
    torch.testing.assert_close(logits, head.objectness_logits(hidden))
    torch.testing.assert_close(deltas, head.anchor_deltas(hidden))
    assert logits.shape == (1, 3, 5, 7) and deltas.shape == (1, 12, 5, 7)
    assert logits.abs().max() < 0.1, "predictors begin near 0"


def test_rpn_head_of_several_convolutions_and_without_norm(cfg):
    cfg.MODEL.RPN.CONV_DIMS = [16, -1]
    cfg.MODEL.RPN.NORM = ""
    names = rpn_head(cfg).state_dict().keys()
    cfg.MODEL.RPN.HEAD_NAME = "StandardRPNHead"
    assert names == rpn_head(cfg).state_dict().keys()


def test_the_norm_of_the_rpn_head_is_used(cfg):
    cfg.MODEL.RPN.NORM = "GN"
    assert any(isinstance(module, nn.GroupNorm) for module in rpn_head(cfg).modules())


# --- box head ---


@torch.no_grad()
def test_box_head(cfg):
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 2
    head = build_box_head(cfg, ShapeSpec(channels=4, height=14, width=14)).eval()
    assert head.output_shape == ShapeSpec(channels=64)
    assert head.fc1.weight.shape == (64, 4 * 7 * 7) and head.fc1.bias is None
    x = torch.randn(3, 4, 14, 14)
    expected = x.unflatten(2, (7, 2)).unflatten(4, (7, 2)).mean(dim=(3, 5)).flatten(1)
    for layer in (head.fc1, head.fc2):
        expected = expected @ layer.weight.T / (1 + 1e-5) ** 0.5
        expected = torch.where(expected < 0, 0.01 * expected, expected)
    torch.testing.assert_close(head(x), expected)
    assert head(x[:0]).shape == (0, 64)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN", ""])
def test_box_head_trains_with_any_norm(cfg, norm):
    cfg.MODEL.ROI_BOX_HEAD.NORM = norm
    head = build_box_head(cfg, ShapeSpec(channels=4, height=14, width=14)).train()
    head(torch.randn(5, 4, 14, 14)).square().sum().backward()
    assert head.fc1.weight.grad.abs().sum() > 0
    assert (head.fc1.bias is None) == (norm != "")


@pytest.mark.parametrize(("key", "value"), [("NUM_CONV", 1), ("NUM_FC", 0)])
def test_box_head_without_its_layers_is_refused(cfg, key, value):
    cfg.MODEL.ROI_BOX_HEAD[key] = value
    with pytest.raises(D2CityscapesError, match=f"{key} {value}"):
        build_box_head(cfg, ShapeSpec(channels=4, height=14, width=14))


# --- mask head ---


def rois(*classes: int) -> Instances:
    """RoIs of one image, 8 x 8 px, whose objects are their left halves; class 8 is background."""
    found = Instances((16, 16))
    found.proposal_boxes = Boxes(torch.tensor([[4.0, 4.0, 12.0, 12.0]]).repeat(len(classes), 1))
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(classes), 16, 16, dtype=torch.bool)
    masks[:, :, :8] = True
    found.gt_masks = BitMasks(masks)
    return found


def mask_head(cfg: CfgNode) -> SeamlessMaskHead:
    return build_mask_head(cfg, ShapeSpec(channels=4, height=14, width=14))


def test_background_counts_in_the_norms_and_not_in_the_loss(cfg):
    head, x = mask_head(cfg).train(), torch.randn(4, 4, 14, 14)
    with torch.no_grad(), EventStorage():
        loss = head(x, [rois(3, K), rois(K, 0)])["loss_mask"]
        logits = head.layers(x)[[0, 3]]  # normalised with all four, too
        expected = mask_rcnn_loss(logits, [rois(3), rois(0)])
        torch.testing.assert_close(loss, expected)
        other = x.clone()
        other[1] *= 5  # of background
        assert head(other, [rois(3, K), rois(K, 0)])["loss_mask"] != loss


def test_without_foreground_the_loss_is_0_and_training_goes_on(cfg):
    head = mask_head(cfg).train()
    empty = rois(K, K)
    empty.remove("gt_masks")  # as of an image without objects
    with EventStorage():
        loss = head(torch.randn(2, 4, 14, 14), [empty])["loss_mask"]
    assert loss == 0
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


@torch.no_grad()
def test_masks_at_inference(cfg):
    head, found = mask_head(cfg).eval(), Instances((16, 16))
    found.pred_classes = torch.tensor([2, 5])
    x = torch.randn(2, 4, 14, 14)
    (found,) = head(x, [found])
    expected = head.layers(x).sigmoid()[[0, 1], [2, 5]]
    torch.testing.assert_close(found.pred_masks[:, 0], expected)
    assert found.pred_masks.shape == (2, 1, 28, 28)


def test_without_norm_mask_tensors_have_the_names_of_the_stock_head(cfg):
    cfg.MODEL.ROI_MASK_HEAD.NORM = ""
    ours = {name: t.shape for name, t in mask_head(cfg).state_dict().items()}
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    assert ours == {name: t.shape for name, t in mask_head(cfg).state_dict().items()}


# --- ROI heads ---

LEVELS = {f"p{k}": ShapeSpec(channels=64, stride=2**k) for k in range(2, 7)}


def test_roi_heads_refuse_a_mask_head_that_would_train_on_background(cfg):
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    with pytest.raises(D2CityscapesError, match="GIoUROIHeads takes any"):
        build_roi_heads(cfg, LEVELS)


def test_roi_heads_begin_near_0(cfg):
    predictor = build_roi_heads(cfg, LEVELS).box_predictor
    assert 0 < predictor.cls_score.weight.std() < 0.005
    assert 0 < predictor.bbox_pred.weight.std() < 0.0005
    assert not predictor.cls_score.bias.any()


def test_roi_heads_without_masks(cfg):
    cfg.MODEL.MASK_ON = False
    assert not hasattr(build_roi_heads(cfg, LEVELS), "mask_head")


def test_defaults_change_no_stock_model():
    cfg = d2c.get_cfg()
    assert cfg.MODEL.RPN.NORM == ""
    assert cfg.MODEL.RPN.HEAD_NAME == "StandardRPNHead"
