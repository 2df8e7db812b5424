"""Weights of small instances in semantic and mask losses; crops without any instance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.modeling.roi_heads import MaskRCNNConvUpsampleHead
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from d2_cityscapes.data import CityscapesShardMapper, write_shards
from d2_cityscapes.data.mapper import PASTE_FROM
from d2_cityscapes.data.register import load_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.deeplab import _cross_entropy
from d2_cityscapes.modeling.execution.mask_loss import WaitFreeConvUpsampleHead, mask_rcnn_loss
from tests.support.losses import losses_of

KINDS = [
    ("StagedSegmentor", "SemSegFPNHead"),
    ("SeamlessPanoptic", "SemSegFPNHead"),
    ("SeamlessPanoptic", "MiniDLSemSegHead"),
]


@pytest.fixture(params=KINDS, ids="-".join)
def model(request, tiny_cfg):
    tiny_cfg.MODEL.META_ARCHITECTURE, tiny_cfg.MODEL.SEM_SEG_HEAD.NAME = request.param
    tiny_cfg.MODEL.SEM_SEG_HEAD.POOL_SIZE = [4, 8]
    tiny_cfg.MODEL.SEM_SEG_HEAD.LOSS_TOP_K = 1.0
    tiny_cfg.MODEL.SEM_SEG_HEAD.LOSS_WEIGHT = 0.5
    tiny_cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p2", "p3"]
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    tiny_cfg.INPUT.SMALL_INSTANCE_WEIGHT = 3.0
    torch.manual_seed(0)
    return build_model(tiny_cfg).train()


def weighted(batch, weights) -> list[dict]:
    return [{**x, "sem_seg_weights": w} for x, w in zip(batch, weights, strict=True)]


def test_the_semantic_loss_is_the_mean_of_weight_times_loss(model, batch):
    batch = batch[:2]
    narrow = {name: batch[0][name][..., :96] for name in ("image", "sem_seg")}
    batch[0] = {**batch[0], **narrow}
    generator = torch.Generator().manual_seed(0)
    weights = [1 + torch.rand(x["sem_seg"].shape, generator=generator) for x in batch]
    found = losses_of(model, weighted(batch, weights))
    images = [(x["image"] - model.pixel_mean) / model.pixel_std for x in batch]
    with torch.no_grad():
        features = model.backbone(ImageList.from_tensors(images, 32).tensor)
        logits = model.sem_seg_head.layers(features)
    each, counted = [], []
    for own, x, weight in zip(logits, batch, weights, strict=True):
        height, width = x["sem_seg"].shape
        full = F.interpolate(own[None], scale_factor=4, mode="bilinear")[:, :, :height, :width]
        loss = F.cross_entropy(full, x["sem_seg"][None], reduction="none", ignore_index=255)[0]
        each.append((loss * weight).sum())
        counted.append((x["sem_seg"] != 255).sum())
    if type(model.sem_seg_head).__name__ == "MiniDLSemSegHead":  # where void counts as 0
        expected = sum(a / x["sem_seg"].numel() for a, x in zip(each, batch, strict=True)) / 2
    else:
        expected = sum(each) / sum(counted)
    torch.testing.assert_close(found["loss_sem_seg"], 0.5 * expected, rtol=1e-5, atol=1e-6)


def test_ones_are_no_weights(model, batch):
    plain = losses_of(model, batch)
    ones = losses_of(model, weighted(batch, [torch.ones(x["sem_seg"].shape) for x in batch]))
    assert plain.keys() == ones.keys()
    for name, loss in plain.items():
        torch.testing.assert_close(ones[name], loss, rtol=1e-5, atol=1e-6)
    threes = weighted(batch, [torch.full(x["sem_seg"].shape, 3.0) for x in batch])
    loss = losses_of(model, threes)["loss_sem_seg"]
    torch.testing.assert_close(loss, 3 * plain["loss_sem_seg"])
    loss.backward()
    assert model.sem_seg_head.predictor.weight.grad.abs().sum() > 0


def test_void_alone_has_no_loss(model, batch):
    void = [{**x, "sem_seg": torch.full_like(x["sem_seg"], 255)} for x in batch[:2]]
    void = weighted(void, [torch.ones(x["sem_seg"].shape) for x in void])
    loss = losses_of(model, void)["loss_sem_seg"]
    loss.backward()
    assert loss == 0 and (model.sem_seg_head.predictor.weight.grad == 0).all()


def test_deeplab_weighs_its_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 4, 6, generator=generator)
    targets = torch.randint(0, 5, (2, 16, 24), generator=generator)
    targets[0, :3] = 255
    weights = 1 + torch.rand(2, 16, 24, generator=generator)
    full = F.interpolate(logits, size=(16, 24), mode="bilinear")
    each = F.cross_entropy(full, targets, reduction="none", ignore_index=255)
    expected = (each * weights).sum() / (targets != 255).sum()
    torch.testing.assert_close(_cross_entropy(logits, targets, 255, weights), expected)
    ones = _cross_entropy(logits, targets, 255, torch.ones_like(weights))
    torch.testing.assert_close(ones, _cross_entropy(logits, targets, 255))


def regions(boxes, weights) -> Instances:
    found = Instances((16, 16))
    found.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    found.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    found.gt_masks = BitMasks(torch.ones(len(boxes), 16, 16, dtype=torch.bool))
    if weights is not None:
        found.gt_weights = torch.tensor(weights)
    return found


def test_the_mask_loss_weighs_regions():
    boxes = [(0, 0, 8, 8), (4, 4, 12, 12), (0, 0, 4, 4)]
    logits = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with EventStorage():
        each = [mask_rcnn_loss(own[None], [regions([box], None)]) for own, box in
                zip(logits, boxes, strict=True)]  # fmt: skip
        found = mask_rcnn_loss(logits, [regions(boxes[:2], [1.0, 3.0]), regions(boxes[2:], [1.0])])
        plain = mask_rcnn_loss(logits, [regions(boxes, None)])
    torch.testing.assert_close(found, (each[0] + 3 * each[1] + each[2]) / 3)
    torch.testing.assert_close(plain, sum(each) / 3)


def test_weights_reach_the_mask_head_of_a_model(tiny_cfg, batch):
    """The stock head looks at them too, and computes the same where there are none."""
    batch = batch[:2]
    losses = {}
    for weight in (1.0, 3.0):
        tiny_cfg.INPUT.SMALL_INSTANCE_WEIGHT = weight
        torch.manual_seed(0)
        model = build_model(tiny_cfg).train()
        kind = type(model.roi_heads.mask_head)
        assert kind is (MaskRCNNConvUpsampleHead if weight == 1 else WaitFreeConvUpsampleHead)
        losses[weight] = losses_of(model, batch)
    for name, loss in losses[1.0].items():
        assert loss.equal(losses[3.0][name]), name
    for x in batch:
        x["instances"].gt_weights = torch.full((len(x["instances"]),), 3.0)
    found = losses_of(model, batch)
    for name, loss in losses[1.0].items():
        torch.testing.assert_close(found[name], loss * (3 if name == "loss_mask" else 1))


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.META_ARCHITECTURE", "SemanticSegmentor"], "SemanticSegmentor with SemSegFPNHead"),
        (["MODEL.ROI_MASK_HEAD.NAME", "SoftmaxMaskRCNNHead"], "SoftmaxMaskRCNNHead has no weights"),
        (["MODEL.MASK_ON", False], "has neither a semantic nor a mask loss that has"),
    ],
)
def test_what_would_not_look_at_weights_is_refused(tiny_cfg, opts, message):
    tiny_cfg.INPUT.SMALL_INSTANCE_WEIGHT = 3.0
    tiny_cfg.merge_from_list(opts)
    with pytest.raises(D2CityscapesError, match=rf"SMALL_INSTANCE_WEIGHT.*{message}"):
        build_model(tiny_cfg)


@pytest.mark.parametrize(
    "architecture", ["GeneralizedRCNN", "StagedRCNN", "SeamlessPanoptic", "StagedSegmentor"]
)
def test_a_crop_without_an_instance_trains(tiny_cfg, architecture, array_source, tmp_path):
    """And one of padding alone, with all augmentation on: finite losses and gradients."""
    ids = np.full((64, 128), 7)
    ids[:, 64:] = 0
    picture = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    write_shards([array_source("a_leftImg8bit.png", picture, ids)], tmp_path, split="train")
    (d,) = load_shards(tmp_path, split="train")
    tiny_cfg.MODEL.META_ARCHITECTURE, tiny_cfg.MODEL.RESNETS.NORM = architecture, "FrozenBN"
    tiny_cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    tiny_cfg.INPUT.MIN_SIZE_TRAIN, tiny_cfg.INPUT.MAX_SIZE_TRAIN = (64,), 128
    tiny_cfg.INPUT.SCALE_JITTER.ENABLED = tiny_cfg.INPUT.COLOR_JITTER.ENABLED = True
    tiny_cfg.INPUT.SCALE_JITTER.RANGE, tiny_cfg.INPUT.SCALE_JITTER.CROP_SIZE = [0.1, 2.0], [64, 64]
    tiny_cfg.INPUT.COPY_PASTE.PROB, tiny_cfg.INPUT.SMALL_INSTANCE_WEIGHT = 1.0, 3.0
    mapper = CityscapesShardMapper(tiny_cfg, True)
    np.random.seed(2)
    batch = [mapper({**d, PASTE_FROM: d}) for _ in range(3)]
    assert all(x["image"].shape == (3, 64, 64) for x in batch)
    assert not any(len(x["instances"]) for x in batch if "instances" in x)
    model = build_model(tiny_cfg).train()
    losses = losses_of(model, batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
