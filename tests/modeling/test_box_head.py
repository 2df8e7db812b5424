"""GIoUROIHeads: w = 0 is stock; the loss, its gradient and its weights for w > 0."""

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import StandardROIHeads
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.layers.losses import IOU_LOSSES
from d2_cityscapes.modeling.box_head import GIOU_LOSS, GIoUOutputLayers, GIoUROIHeads
from tests.support.losses import losses_of

FEATURES, CLASSES = 6, 3
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def predictor(*, agnostic: bool = False) -> GIoUOutputLayers:
    torch.manual_seed(0)
    layers = GIoUOutputLayers(
        ShapeSpec(channels=FEATURES),
        box2box_transform=Box2BoxTransform(weights=WEIGHTS),
        num_classes=CLASSES,
        cls_agnostic_bbox_reg=agnostic,
    )
    torch.nn.init.normal_(layers.bbox_pred.weight, std=1.0)  # boxes that really move
    return layers


def proposals(classes: list[int], *, truth: bool = True, seed: int = 0) -> Instances:
    """Random proposals; their truth boxes are the same boxes shifted and scaled."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(len(classes), 2, generator=generator) * 60
    size = torch.rand(len(classes), 2, generator=generator) * 30 + 5
    found = Instances((100, 100))
    found.proposal_boxes = Boxes(torch.cat([corner, corner + size], dim=1))
    found.gt_classes = torch.tensor(classes, dtype=torch.int64)
    if truth:
        found.gt_boxes = Boxes(torch.cat([corner + 3, corner + 3 + size * 1.2], dim=1))
    return found


def giou_loss_of(layers, x, found) -> torch.Tensor:
    with EventStorage():
        return layers.losses(layers(x), found)[GIOU_LOSS]


def reference_loss(weight, bias, x, found, *, agnostic=False) -> float:
    """The definition in float64 numpy, box by box."""
    deltas = x @ weight.T + bias
    losses = []
    for row, per_image in zip(
        np.split(deltas, np.cumsum([len(p) for p in found])[:-1]), found, strict=True
    ):
        for delta, box, klass, i in zip(
            row,
            per_image.proposal_boxes.tensor.double().numpy(),
            per_image.gt_classes.tolist(),
            range(len(per_image)),
            strict=True,
        ):
            if klass >= CLASSES:
                continue
            truth = per_image.gt_boxes.tensor[i].double().numpy()
            d = (delta if agnostic else delta[4 * klass : 4 * klass + 4]) / np.array(WEIGHTS)
            size = box[2:] - box[:2]
            centre = (box[2:] + box[:2]) / 2 + d[:2] * size
            half = np.exp(np.minimum(d[2:], np.log(1000 / 16))) * size / 2
            low, high = centre - half, centre + half
            common = np.clip(
                np.minimum(high, truth[2:]) - np.maximum(low, truth[:2]), 0, None
            ).prod()
            union = (high - low).prod() + (truth[2:] - truth[:2]).prod() - common
            hull = (np.maximum(high, truth[2:]) - np.minimum(low, truth[:2])).prod()
            losses.append(1 - common / union + (hull - union) / hull)
    return float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_and_gradient_equal_a_float64_reference(agnostic):
    layers = predictor(agnostic=agnostic)
    found = [proposals([0, 2, CLASSES, 1], seed=1), proposals([CLASSES, 2], seed=2)]
    x = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(3))

    loss = giou_loss_of(layers, x, found)
    gradient = torch.autograd.grad(loss, layers.bbox_pred.weight)[0].numpy()

    weight, bias = (p.detach().double().numpy() for p in layers.bbox_pred.parameters())
    pixels = x.double().numpy()
    assert loss.item() == pytest.approx(
        reference_loss(weight, bias, pixels, found, agnostic=agnostic), rel=1e-5
    )
    expected = np.zeros_like(weight)
    for index in np.ndindex(weight.shape):
        step = np.zeros_like(weight)
        step[index] = 1e-6
        up = reference_loss(weight + step, bias, pixels, found, agnostic=agnostic)
        down = reference_loss(weight - step, bias, pixels, found, agnostic=agnostic)
        expected[index] = (up - down) / 2e-6
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)


def test_only_the_truth_class_of_foreground_has_a_gradient():
    layers = predictor()
    x = torch.randn(2, FEATURES)
    giou_loss_of(layers, x, [proposals([1, CLASSES])]).backward()
    rows = layers.bbox_pred.weight.grad.view(CLASSES, 4, FEATURES).abs().sum(dim=(1, 2))
    assert rows[1] > 0
    assert rows[0] == rows[2] == 0
    assert layers.cls_score.weight.grad is None


@pytest.mark.parametrize(
    "found",
    [
        [proposals([CLASSES, CLASSES])],
        [proposals([CLASSES, CLASSES], truth=False)],  # an image without truth
        [proposals([])],
    ],
)
def test_no_foreground_is_zero_with_a_graph(found):
    layers = predictor()
    loss = giou_loss_of(layers, torch.randn(len(found[0]), FEATURES), found)
    loss.backward()
    assert loss.item() == 0
    assert not layers.bbox_pred.weight.grad.any()


def spoilt_in(rows: list[int], layers, x) -> tuple[torch.Tensor, torch.Tensor]:
    """The predictions, with infinite and NaN deltas in some rows."""
    logits, deltas = layers(x)
    spoilt = deltas.clone()
    for row, value in zip(rows, (float("inf"), float("nan"), -float("inf")), strict=False):
        spoilt[row] = value
    return logits, spoilt


@pytest.mark.parametrize("agnostic", [False, True])
def test_deltas_of_the_background_do_not_matter(agnostic):
    """Be they infinite or NaN: loss and gradient are those of the foreground by itself."""
    layers = predictor(agnostic=agnostic)
    classes = [0, CLASSES, 2, CLASSES, 1, CLASSES, -1]
    every, x = proposals(classes), torch.randn(7, FEATURES)
    rows = torch.tensor([0, 2, 4])
    gradients, found = [], []
    for chosen, own in ((torch.arange(7), every), (rows, every[rows])):
        _, deltas = layers(x[chosen])
        if len(chosen) == 7:
            _, deltas = spoilt_in([1, 3, 5], layers, x)
        found.append(layers._iou_term(deltas, [own]))
        (gradient,) = torch.autograd.grad(found[-1], layers.bbox_pred.bias)
        gradients.append(gradient)
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


def test_the_giou_loss_waits_for_nothing(fake_gpu):
    layers = predictor().to("cuda")
    found = proposals([0, CLASSES, 2]).to("cuda")
    _, deltas = layers(torch.randn(3, FEATURES, device="cuda"))
    with fake_gpu.watch() as seen:
        layers._iou_term(deltas, [found]).backward()
    assert seen.total == 0, seen.table()


def test_huge_deltas_stay_finite():
    layers = predictor()
    with torch.no_grad():
        layers.bbox_pred.bias.fill_(1e4)
    loss = giou_loss_of(layers, torch.randn(3, FEATURES), [proposals([0, 1, 2])])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(layers.bbox_pred.weight.grad).all()


def test_float32_under_autocast():
    layers, x, found = predictor(), torch.randn(3, FEATURES), [proposals([0, 1, 2])]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = giou_loss_of(layers, x, found)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(giou_loss_of(layers, x, found).item(), rel=0.1)


def test_zero_weight_is_stock_bit_for_bit(tiny_cfg, batch):
    models = {}
    for name in ("GIoUROIHeads", "StandardROIHeads"):
        tiny_cfg.MODEL.ROI_HEADS.NAME = name
        torch.manual_seed(0)
        models[name] = build_detectron2_model(tiny_cfg)
    ours, stock = models.values()
    assert type(ours.roi_heads) is GIoUROIHeads
    assert type(stock.roi_heads) is StandardROIHeads
    assert type(ours.roi_heads.box_predictor) is type(stock.roi_heads.box_predictor)

    losses = [losses_of(model, batch) for model in (ours, stock)]
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])
    for found in losses:
        sum(found.values()).backward()
    for a, b in zip(ours.parameters(), stock.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)

    results = [model.eval()(batch)[0]["instances"] for model in (ours, stock)]
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    assert torch.equal(results[0].pred_masks, results[1].pred_masks)


def test_weight_leaves_names_and_initial_weights_alone(tiny_cfg):
    states = []
    for weight in (0.0, 0.3):
        tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = weight
        torch.manual_seed(0)
        states.append(build_detectron2_model(tiny_cfg).state_dict())
        states.append({"next random number": torch.rand(1)})
    assert states[0].keys() == states[2].keys()
    assert all(torch.equal(states[0][key], states[2][key]) for key in states[0])
    assert states[1] == states[3]


def test_weight_one_leaves_giou_alone(tiny_cfg, batch):
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 1.0
    found = losses_of(build_detectron2_model(tiny_cfg), batch)
    assert found[GIOU_LOSS] > 0
    assert found["loss_cls"] == found["loss_box_reg"] == found["loss_mask"] == 0


def test_refuses_a_predictor_without_the_loss(tiny_cfg):
    heads = build_detectron2_model(tiny_cfg).roi_heads
    parts = {
        "num_classes": 8,
        "batch_size_per_image": 32,
        "positive_fraction": 0.25,
        "proposal_matcher": heads.proposal_matcher,
        "box_in_features": heads.box_in_features,
        "box_pooler": heads.box_pooler,
        "box_head": heads.box_head,
        "box_predictor": heads.box_predictor,
    }
    assert GIoUROIHeads(**parts).giou_weight == 0
    with pytest.raises(ValueError, match="GIoUOutputLayers"):
        GIoUROIHeads(giou_weight=0.1, **parts)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_refuses_a_weight_outside_0_to_1(tiny_cfg, weight):
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = weight
    with pytest.raises(D2CityscapesError, match="GIOU_WEIGHT"):
        build_detectron2_model(tiny_cfg)


def test_the_term_may_be_of_another_kind(tiny_cfg, batch):
    """It takes the place of GIoU, with its weight, and all else stays as it is, to the bit."""
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.25
    found, others = {}, []
    for kind in IOU_LOSSES:
        tiny_cfg.MODEL.ROI_BOX_HEAD.IOU_LOSS = kind
        torch.manual_seed(0)
        losses = losses_of(build_detectron2_model(tiny_cfg), batch)
        found[kind] = losses.pop(f"loss_box_{kind}").item()
        others.append(losses)
    assert "loss_cls" in others[0] and others == [others[0]] * 3
    assert found["giou"] != found["diou"] and min(found.values()) > 0


@pytest.mark.parametrize("kind", IOU_LOSSES)
def test_its_boxes_are_those_of_the_deltas(kind):
    layers, every = predictor(), proposals([1, 0, CLASSES])
    layers.iou_loss = IOU_LOSSES[kind]
    x = torch.randn(3, FEATURES)
    deltas = layers(x)[1].view(3, CLASSES, 4)[[0, 1], [1, 0]]
    boxes = layers.box2box_transform.apply_deltas(deltas, every.proposal_boxes.tensor[:2])
    expected = IOU_LOSSES[kind](boxes, every.gt_boxes.tensor[:2], "mean")
    torch.testing.assert_close(layers._iou_term(layers(x)[1], [every]), expected)


def test_an_unknown_kind_is_refused(tiny_cfg):
    tiny_cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT = 0.25
    tiny_cfg.MODEL.ROI_BOX_HEAD.IOU_LOSS = "eiou"
    with pytest.raises(D2CityscapesError, match="IOU_LOSS 'eiou': use giou or diou or ciou"):
        build_detectron2_model(tiny_cfg)
