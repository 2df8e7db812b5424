"""Batches padded to coarse multiples: what is padded does not count, and 0 is stock."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution.padding import pad_to_multiple


def sizes_seen(model: nn.Module, inputs) -> list[tuple[int, int]]:
    """Of what enters the backbone, with the losses finite."""
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append((*args[0].shape[-2:],)))
    torch.manual_seed(0)
    with EventStorage():
        losses = model.train()(inputs)
    assert all(loss.isfinite() for loss in losses.values())
    return seen


def build(cfg, multiple: int = 0) -> nn.Module:
    cfg.INPUT.SIZE_DIVISIBILITY = multiple
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize("architecture", ["StagedRCNN", "SeamlessPanoptic", "DeepLabV3Segmentor"])
def test_batches_have_multiples_in_training_and_test(tiny_cfg, batch, architecture):
    tiny_cfg.MODEL.META_ARCHITECTURE = architecture
    if architecture == "DeepLabV3Segmentor":
        tiny_cfg.MODEL.RESNETS.DEPTH = 50
    height, width = batch[0]["image"].shape[-2:]
    assert height % 96 or width % 96
    stock, model = build(tiny_cfg), build(tiny_cfg, 96)
    padded = (-(-height // 96) * 96, -(-width // 96) * 96)
    assert sizes_seen(stock, batch) == [(height, width)]
    assert sizes_seen(model, batch) == [padded]
    assert list(model.state_dict()) == list(stock.state_dict())
    with torch.no_grad():
        found = model.eval()(batch)
    for output, inputs in zip(found, batch, strict=True):
        size = (inputs.get("height", height), inputs.get("width", width))
        if "sem_seg" in output:
            assert output["sem_seg"].shape[-2:] == size
        if "instances" in output:
            assert output["instances"].image_size == size


def test_a_size_that_is_a_multiple_is_stock(tiny_cfg, batch):
    losses = []
    for multiple in (0, 64):
        model = build(tiny_cfg, multiple)
        torch.manual_seed(1)
        with EventStorage():
            losses.append(model.train()(batch))
    assert batch[0]["image"].shape[-2] % 64 == 0
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[0])


class Pixels(nn.Module):
    """A backbone that looks at one pixel at a time: padding reaches nothing through it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return {"out": self.conv(x), "aux": x}


def test_the_semantic_loss_does_not_count_what_is_padded():
    from d2_cityscapes.modeling.deeplab import DeepLabV3Segmentor

    torch.manual_seed(0)
    model = DeepLabV3Segmentor(
        backbone=Pixels(),
        classifier=nn.Conv2d(4, 19, 1),
        aux_classifier=nn.Identity(),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    twin = copy.deepcopy(model)
    pad_to_multiple(twin, 32)
    inputs = [{"image": torch.randn(3, 20, 28), "sem_seg": torch.randint(0, 19, (20, 28))}]
    own, padded = (each.train()(inputs)["loss_sem_seg"] for each in (model, twin))
    torch.testing.assert_close(padded, own)


def test_copies_pad_alike():
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    pad_to_multiple(model, 64)
    twin = copy.deepcopy(model)
    assert twin.backbone.size_divisibility == 64 and isinstance(twin.backbone, nn.Conv2d)
    assert not hasattr(nn.Conv2d(3, 3, 1), "size_divisibility")


@pytest.mark.parametrize("multiple", [48, -32])
def test_multiples_that_the_backbone_cannot_use(tiny_cfg, multiple):
    with pytest.raises(D2CityscapesError, match=r"SIZE_DIVISIBILITY -?\d+: use a multiple of \d+"):
        build(tiny_cfg, multiple)


def test_a_model_without_a_backbone():
    with pytest.raises(D2CityscapesError, match="SIZE_DIVISIBILITY: Linear has no backbone"):
        pad_to_multiple(nn.Linear(2, 2), 32)
