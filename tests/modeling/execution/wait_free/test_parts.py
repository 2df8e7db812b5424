"""Whole models: stock on the CPU; on a GPU the same losses from the same draws, in three waits."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import StandardROIHeads
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution.wait_free.parts import stop_waiting
from d2_cityscapes.modeling.execution.wait_free.where import as_on_gpu


@pytest.fixture(params=["StagedRCNN", "SeamlessPanoptic", "Seamless"])
def cfg(tiny_cfg, request):
    """Mask R-CNN, Panoptic FPN, and the parts of the Seamless model."""
    model = tiny_cfg.MODEL
    model.RESNETS.NORM = "FrozenBN"
    model.META_ARCHITECTURE = "StagedRCNN" if request.param == "StagedRCNN" else "SeamlessPanoptic"
    model.ROI_BOX_HEAD.GIOU_WEIGHT = 0.1
    if request.param == "Seamless":
        model.RPN.HEAD_NAME, model.ROI_HEADS.NAME = "SeamlessRPNHead", "SeamlessROIHeads"
        model.ROI_BOX_HEAD.NAME, model.ROI_BOX_HEAD.POOLER_RESOLUTION = "SeamlessBoxHead", 14
        model.ROI_MASK_HEAD.NAME = "SeamlessMaskHead"
        model.ROI_BOX_HEAD.GIOU_WEIGHT = 0.0
    return tiny_cfg


def build(cfg, *, wait_free: bool) -> nn.Module:
    """The same weights each time; large enough in the RPN that proposals move."""
    cfg.MODEL.WAIT_FREE = wait_free
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for layer in (model.proposal_generator.rpn_head.anchor_deltas, *_box_layers(model)):
            layer.weight.normal_(std=0.02)
    return model.train()


def _box_layers(model: nn.Module) -> list[nn.Module]:
    predictor = model.roi_heads.box_predictor
    return [predictor.cls_score, predictor.bbox_pred]


def train(model: nn.Module, inputs) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses and gradients of their sum, and what was logged."""
    torch.manual_seed(1)  # the samplers draw at random
    with EventStorage() as storage:
        losses = model(inputs)
    sum(losses.values()).backward()
    logged = {name: value for name, (value, _) in storage.latest().items()}
    return losses | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, logged


def test_on_the_cpu_it_is_stock(cfg, batch):
    stock, ours = (train(build(cfg, wait_free=on), batch) for on in (False, True))
    assert ours[0].keys() == stock[0].keys()
    for name, expected in stock[0].items():
        assert torch.equal(ours[0][name], expected), name
    assert ours[1] == stock[1]


class _Keyed:
    """Detectron2's sampler with the draws of ours: the largest keys, found by sorting lists."""

    def __init__(self) -> None:
        self.keys: list[list[float]] = []

    def begin(self, images: int, candidates: int) -> None:
        self.keys = torch.rand(images, candidates).tolist()

    def __call__(self, labels, number, fraction, background):
        keys = self.keys.pop(0)

        def largest(members: torch.Tensor, most: int) -> torch.Tensor:
            ranked = sorted(members.nonzero()[:, 0].tolist(), key=lambda i: -keys[i])
            return torch.tensor(ranked[:most], dtype=torch.int64)

        positive = largest((labels != -1) & (labels != background), int(number * fraction))
        return positive, largest(labels == background, number - len(positive))


@pytest.fixture
def draw_by_keys(monkeypatch):
    """Stock models draw as ours do on a GPU."""
    sampler = _Keyed()
    label_anchors, label_proposals = (
        RPN.label_and_sample_anchors,
        StandardROIHeads.label_and_sample_proposals,
    )

    def anchors(self, anchors, instances):
        sampler.begin(len(instances), sum(map(len, anchors)))
        return label_anchors(self, anchors, instances)

    def proposals(self, proposals, targets):
        pairs = zip(proposals, targets, strict=True)
        sampler.begin(len(proposals), max(len(p) + len(t) for p, t in pairs))
        return label_proposals(self, proposals, targets)

    monkeypatch.setattr(RPN, "label_and_sample_anchors", anchors)
    monkeypatch.setattr(StandardROIHeads, "label_and_sample_proposals", proposals)
    for owner in ("proposal_generator.rpn", "roi_heads.roi_heads"):
        monkeypatch.setattr(f"detectron2.modeling.{owner}.subsample_labels", sampler)


def test_on_a_gpu_the_same_draws_give_the_same_losses(cfg, batch, draw_by_keys):
    batch.append(copy.deepcopy(batch[0]))
    batch[-1]["image"] = batch[-1]["image"][:, :50, :100].contiguous()  # of another size
    batch[-1]["instances"] = _cut(batch[-1]["instances"], 50, 100)
    batch[-1]["sem_seg"] = batch[-1]["sem_seg"][:50, :100]
    stock = train(build(cfg, wait_free=False), batch)
    with as_on_gpu():
        ours = train(build(cfg, wait_free=True), batch)
    assert ours[0].keys() == stock[0].keys()
    for name, expected in stock[0].items():  # sums of the RPN in another order
        close = 1e-5 * expected.detach().abs().max().clamp(min=1e-3)
        assert (ours[0][name] - expected).abs().max() <= close, name
    assert ours[1] == pytest.approx(stock[1], rel=1e-5)


def _cut(instances: Instances, height: int, width: int) -> Instances:
    cut = Instances((height, width))
    cut.gt_boxes = Boxes(instances.gt_boxes.tensor.clone())
    cut.gt_boxes.clip((height, width))
    cut.gt_classes = instances.gt_classes
    cut.gt_masks = type(instances.gt_masks)(instances.gt_masks.tensor[:, :height, :width])
    return cut


def test_images_without_objects(cfg, empty_batch, draw_by_keys):
    stock = train(build(cfg, wait_free=False), empty_batch)
    with as_on_gpu():
        ours = train(build(cfg, wait_free=True), empty_batch)
    assert stock[0].keys() == ours[0].keys()
    for name, expected in stock[0].items():
        torch.testing.assert_close(ours[0][name], expected, rtol=1e-4, atol=1e-6)
    assert stock[1].keys() == ours[1].keys()


def test_predictions_are_stocks(tiny_cfg, batch):
    stock, ours = (build(tiny_cfg, wait_free=on).eval() for on in (False, True))
    with torch.no_grad(), as_on_gpu():
        for expected, found in zip(stock(batch), ours(batch), strict=True):
            found, expected = found["instances"], expected["instances"]
            assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(found.scores, expected.scores)


def test_names_and_weights_are_stocks_and_copies_compute_the_same(tiny_cfg, batch):
    stock, ours = (build(tiny_cfg, wait_free=on) for on in (False, True))
    assert list(ours.state_dict()) == list(stock.state_dict())
    with as_on_gpu():
        found, copied = (train(model, batch)[0] for model in (copy.deepcopy(ours), ours))
    assert all(torch.equal(found[name], copied[name]) for name in copied)


def test_three_waits_a_step(cfg, batch, fake_gpu):
    """Of the forward and the backward pass, with targets that are on the GPU: all there are."""
    cfg.MODEL.DEVICE = "cuda"
    inputs = [{key: value.to("cuda") for key, value in image.items()} for image in batch[:2]]

    def waits(wait_free: bool):
        model = build(cfg, wait_free=wait_free)
        with EventStorage(), fake_gpu.watch() as seen:
            with torch.autocast("cuda", dtype=torch.float16):
                losses = sum(model(inputs).values())
            losses.backward()
        return seen

    assert waits(False).total > 50
    seen = waits(True)
    assert seen.total <= 3, seen.table()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_boxes_are_exact_in_mixed_precision(tiny_cfg, batch, precision):
    """Anchors, deltas, proposals and targets are float32, levels and ids int64."""
    seen = {}
    model = build(tiny_cfg, wait_free=True)
    heads = model.roi_heads
    forward = heads._forward_box

    def look(features, proposals):
        seen["proposals"] = proposals
        return forward(features, proposals)

    heads._forward_box = look
    with EventStorage(), torch.autocast("cpu", dtype=precision), as_on_gpu():
        losses = model(batch)
    for image, given in zip(seen["proposals"], batch, strict=True):
        boxes = image.proposal_boxes
        assert boxes.tensor.dtype == torch.float32
        assert boxes.levels.dtype == image.gt_classes.dtype == torch.int64
        if len(given["instances"]):
            assert image.gt_boxes.tensor.dtype == torch.float32
            truth = given["instances"].gt_boxes.tensor
            same = (image.gt_boxes.tensor[:, None] == truth).all(dim=2).any(dim=1)
            assert same.all()
            # objects are proposals too, unchanged
            own = (boxes.tensor[:, None] == truth).all(dim=2).any(dim=0)
            assert own.all()
    assert losses["loss_rpn_cls"].dtype == losses["loss_rpn_loc"].dtype == torch.float32


def test_another_loss_waits_as_ever(tiny_cfg, batch, draw_by_keys):
    tiny_cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE = "giou"
    tiny_cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE = "giou"
    stock = train(build(tiny_cfg, wait_free=False), batch)
    with as_on_gpu():
        ours = train(build(tiny_cfg, wait_free=True), batch)
    for name, expected in stock[0].items():
        torch.testing.assert_close(ours[0][name], expected, rtol=1e-4, atol=1e-6)


def test_models_without_such_parts_refuse_the_key(tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE, tiny_cfg.MODEL.RESNETS.DEPTH = "DeepLabV3Segmentor", 50
    tiny_cfg.MODEL.WAIT_FREE = True
    with pytest.raises(D2CityscapesError, match=r"MODEL.WAIT_FREE: DeepLabV3Segmentor has no RPN"):
        build_model(tiny_cfg)


def test_off_nothing_changes(tiny_cfg):
    model = build(tiny_cfg, wait_free=False)
    types = [type(part) for part in model.modules()]
    assert not any("wait_free" in kind.__module__ for kind in types)
    stop_waiting(model)
    assert [type(part) for part in model.modules()] != types
