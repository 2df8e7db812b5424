"""Softmax masks and the MLP mask head: losses by hand, predictions, empty input, whole models."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.mask_head import MLPMaskHead, SoftmaxMaskRCNNHead
from d2_cityscapes.structures import IdMapMasks

CHANNELS, CLASSES = 5, 3
HEADS = [SoftmaxMaskRCNNHead, MLPMaskHead]


def head_of(kind, *, classes=CLASSES, seed=0, **kwargs):
    """A small head for features of 2 x 2, so masks of 4 x 4, with weights that matter."""
    torch.manual_seed(seed)
    dims = {"fc_dims": [7]} if kind is MLPMaskHead else {"conv_dims": [16]}
    shape = ShapeSpec(channels=CHANNELS, height=2, width=2)
    head = kind(shape, num_classes=classes, **dims, **kwargs)
    torch.nn.init.normal_(head.predictor.weight)
    torch.nn.init.normal_(head.predictor.bias)
    return head


def regions(classes: list[int]) -> Instances:
    """Regions of an 8 x 8 image; every truth mask is the left half of its region."""
    found = Instances((8, 8))
    found.proposal_boxes = Boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(classes), 1))
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    masks = torch.zeros(len(classes), 8, 8, dtype=torch.bool)
    masks[:, :, :4] = True
    found.gt_masks = BitMasks(masks)
    return found


def detections(classes: list[int]) -> Instances:
    found = Instances((8, 8))
    found.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return found


def loss_of(head, x, instances) -> torch.Tensor:
    with EventStorage():
        losses = head.train()(x, instances)
    assert losses.keys() == {"loss_mask"}
    return losses["loss_mask"]


def features(number: int) -> torch.Tensor:
    return torch.randn(number, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(number))


def softmax_loss_by_hand(logits, classes) -> float:
    """Cell by cell in plain Python: the left half is the class, the right half background."""
    total = 0.0
    for region, klass in zip(logits.tolist(), classes, strict=True):
        for row in range(4):
            for column in range(4):
                cell = [channel[row][column] for channel in region]
                truth = klass if column < 2 else len(cell) - 1
                total += math.log(sum(map(math.exp, cell))) - cell[truth]
    return total / (16 * len(classes))


def test_softmax_loss_by_hand():
    head = head_of(SoftmaxMaskRCNNHead)
    x, classes = features(3), [2, 0, 1]
    found = loss_of(head, x, [regions(classes[:2]), regions([]), regions(classes[2:])])
    logits = head.layers(x)
    assert logits.shape == (3, CLASSES + 1, 4, 4)
    assert found.item() == pytest.approx(softmax_loss_by_hand(logits, classes), rel=1e-5)


def test_softmax_of_one_class_is_a_sigmoid():
    """Class-agnostic: log-odds against background, so the stock loss on their difference."""
    head = head_of(SoftmaxMaskRCNNHead, classes=1)
    x = features(2)
    logits = head.layers(x)
    assert logits.shape[1] == 2
    truth = torch.zeros(2, 4, 4)
    truth[:, :, :2] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:, 0] - logits[:, 1], truth
    )
    assert loss_of(head, x, [regions([2, 1])]).item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = head.eval()(x, [detections([2, 1])])
    torch.testing.assert_close(found.pred_masks[:, 0], (logits[:, 0] - logits[:, 1]).sigmoid())


def test_softmax_predicts_the_probability_of_the_predicted_class():
    head = head_of(SoftmaxMaskRCNNHead).eval()
    x = features(3)
    first, empty, last = head(x, [detections([1]), detections([]), detections([2, 0])])
    odds = head.layers(x).exp()
    for found, region, klass in ((first, 0, 1), (last, 1, 2), (last, 2, 0)):
        place = region - 1 if found is last else region
        expected = odds[region, klass] / odds[region].sum(dim=0)
        torch.testing.assert_close(found.pred_masks[place, 0], expected)
    assert first.pred_masks.shape == (1, 1, 4, 4)
    assert empty.pred_masks.shape == (0, 1, 4, 4)


def test_softmax_classes_compete():
    """A cell that another class wins is not part of the mask, whatever its own logit."""
    head = head_of(SoftmaxMaskRCNNHead)
    with torch.no_grad():
        head.predictor.weight.zero_()
        head.predictor.bias.copy_(torch.tensor([5.0, 9.0, 0.0, 0.0]))
    (found,) = head.eval()(features(2), [detections([0, 1])])
    assert (found.pred_masks[0] < 0.02).all()
    assert (found.pred_masks[1] > 0.98).all()


def test_mlp_loss_is_the_stock_loss_on_its_logits():
    head = head_of(MLPMaskHead)
    x, classes = features(3), [2, 0, 1]
    hidden = (x.reshape(3, -1) @ head.hidden[0].weight.T + head.hidden[0].bias).clamp(min=0)
    logits = hidden @ head.predictor.weight.T + head.predictor.bias
    own = logits.reshape(3, CLASSES, 4, 4)[range(3), classes]
    truth = torch.zeros(3, 4, 4)
    truth[:, :, :2] = 1
    expected = torch.nn.functional.binary_cross_entropy_with_logits(own, truth)
    assert loss_of(head, x, [regions(classes)]).item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = head.eval()(x, [detections(classes)])
    torch.testing.assert_close(found.pred_masks[:, 0], own.sigmoid())


def test_mlp_has_the_layers_of_the_config(tiny_cfg):
    head_cfg = tiny_cfg.MODEL.ROI_MASK_HEAD
    head_cfg.NAME, head_cfg.NUM_CONV, head_cfg.FC_DIM = "MLPMaskHead", 2, 24
    head = ROI_MASK_HEAD_REGISTRY.get("MLPMaskHead")(tiny_cfg, ShapeSpec(8, 14, 14))
    shapes = [tuple(p.shape) for p in head.parameters() if p.dim() == 2]
    assert shapes == [(24, 8 * 14 * 14), (24, 24), (8 * 28 * 28, 24)]
    head_cfg.CLS_AGNOSTIC_MASK = True
    head = MLPMaskHead(tiny_cfg, ShapeSpec(8, 14, 14))
    assert head.layers(torch.zeros(2, 8, 14, 14)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("images", [1, 2])
def test_no_regions_is_zero_with_a_graph(kind, images):
    head = head_of(kind)
    loss = loss_of(head, torch.zeros(0, CHANNELS, 2, 2), [regions([])] * images)
    loss.backward()
    assert loss.item() == 0
    assert all(not p.grad.any() for p in head.parameters())
    found = head.eval()(torch.zeros(0, CHANNELS, 2, 2), [detections([]) for _ in range(images)])
    assert all(i.pred_masks.shape == (0, 1, 4, 4) for i in found)


@pytest.mark.parametrize("kind", HEADS)
def test_the_loss_descends(kind):
    head = head_of(kind)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = loss_of(head, features(4), [regions([0, 1, 2, 2])])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
    assert losses[-1] < 0.1 < losses[0]
    (found,) = head.eval()(features(4), [detections([0, 1, 2, 2])])
    assert (found.pred_masks[..., :2] > 0.5).all()
    assert (found.pred_masks[..., 2:] < 0.5).all()


@pytest.mark.parametrize("kind", HEADS)
def test_id_maps_and_bitmaps_are_the_same_targets(kind):
    ids = torch.zeros(8, 8, dtype=torch.int32)
    ids[1:6, 2:7], ids[4:, :3] = 26001, 24002
    found = regions([2, 0])
    found.proposal_boxes = Boxes(torch.tensor([[1.0, 0.5, 7.5, 6.0], [0.0, 3.0, 5.0, 8.0]]))
    head, losses = head_of(kind), []
    id_masks = IdMapMasks(ids, torch.tensor([26001, 24002], dtype=torch.int32))
    for masks in (id_masks, BitMasks(id_masks.tensor)):
        found.gt_masks = masks
        losses.append(loss_of(head, features(2), [found]))
    assert torch.equal(*losses)


@pytest.mark.parametrize("kind", HEADS)
def test_loss_and_masks_are_float32_under_autocast(kind):
    head, x = head_of(kind), features(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(head, x, [regions([0, 1, 2])])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(loss_of(head, x, [regions([0, 1, 2])]).item(), rel=0.1)


@pytest.mark.parametrize("kind", HEADS)
def test_loss_weight(kind):
    x = features(2)
    plain, weighted = (loss_of(head_of(kind, loss_weight=w), x, [regions([0, 1])]) for w in (1, 3))
    assert weighted.item() == pytest.approx(3 * plain.item())


@pytest.mark.parametrize("name", ["SoftmaxMaskRCNNHead", "MLPMaskHead"])
def test_in_a_model(name, tiny_cfg, batch, empty_batch):
    """Selected by name it trains and predicts, on images with and without instances."""
    tiny_cfg.MODEL.ROI_MASK_HEAD.NAME = name
    tiny_cfg.MODEL.ROI_MASK_HEAD.FC_DIM = 16
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.1
    tiny_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    for inputs in (batch, empty_batch):
        with EventStorage():
            losses = model.train()(inputs)
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.roi_heads.mask_head.predictor.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()(batch)[0]["instances"]
    assert found.pred_masks.shape == (len(found), 64, 128)
    assert found.pred_masks.dtype == torch.bool


def test_softmax_differs_from_the_stock_head_in_the_predictor_alone(tiny_cfg):
    shape = ShapeSpec(channels=8, height=14, width=14)
    shapes = [
        {name: tuple(p.shape) for name, p in kind(tiny_cfg, shape).named_parameters()}
        for kind in (MaskRCNNConvUpsampleHead, SoftmaxMaskRCNNHead)
    ]
    stock, ours = shapes
    assert stock.keys() == ours.keys()
    changed = {name: (stock[name], ours[name]) for name in stock if stock[name] != ours[name]}
    assert changed == {
        "predictor.weight": ((8, 16, 1, 1), (9, 16, 1, 1)),
        "predictor.bias": ((8,), (9,)),
    }


def test_mlp_refuses_heads_with_features_of_another_size(tiny_cfg):
    tiny_cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    with pytest.raises(D2CityscapesError, match="use StandardROIHeads"):
        MLPMaskHead(tiny_cfg, ShapeSpec(channels=8, height=14, width=14))
