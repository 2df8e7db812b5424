"""The four options together: off is stock to the last bit, on reaches the model, names stay."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.utils.events import EventStorage
from torch import nn

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.modeling.build import build_model
from d2_cityscapes.modeling.execution import dense
from d2_cityscapes.modeling.execution.dense import set_dense_options, use_channels_last

FOLD, LAST, CHECKPOINT = "FOLD_FROZEN_NORM", "CHANNELS_LAST", "ACTIVATION_CHECKPOINTING"


@pytest.fixture
def cfg(tiny_cfg):
    """With frozen norms, and otherwise small."""
    tiny_cfg.MODEL.RESNETS.NORM = "FrozenBN"
    return tiny_cfg


def switch_on(cfg, *keys: str) -> None:
    for node in (cfg.MODEL.RESNETS, cfg.SOLVER, cfg.MODEL.BACKBONE):
        for key in keys:
            if key in node:
                node[key] = True


def build(cfg, make=build_model) -> nn.Module:
    """A model whose weights, and frozen norms, are always the same."""
    torch.manual_seed(0)
    model = make(cfg)
    for layer in model.modules():
        if isinstance(layer, FrozenBatchNorm2d):
            layer.weight.uniform_(0.3, 0.9)
            layer.bias.normal_(std=0.1)
            layer.running_var.uniform_(0.5, 2)
    return model


def train(model: nn.Module, inputs) -> dict[str, torch.Tensor]:
    """Losses, and the gradients of their sum."""
    torch.manual_seed(1)  # the samplers draw at random
    model.train()
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("architecture", ["GeneralizedRCNN", "SeamlessPanoptic"])
def test_off_is_stock(cfg, batch, architecture):
    cfg.MODEL.META_ARCHITECTURE = architecture
    ours, stock = train(build(cfg), batch), train(build(cfg, build_detectron2_model), batch)
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


@pytest.mark.parametrize("keys", [(FOLD,), (LAST,), (CHECKPOINT,), (FOLD, LAST, CHECKPOINT)])
def test_on_gives_the_same_losses_and_gradients(cfg, batch, keys):
    stock = train(build(cfg), batch)
    switch_on(cfg, *keys)
    ours = train(build(cfg), batch)
    assert ours.keys() == stock.keys()
    for name, expected in stock.items():
        if keys == (CHECKPOINT,):
            assert torch.equal(ours[name], expected), name
        else:  # sums in another order
            close = 1e-3 * expected.detach().abs().max().clamp(min=1e-3)
            assert (ours[name] - expected).abs().max() <= close, name


def test_names_and_tensors_are_stocks(cfg):
    stock = build(cfg)
    switch_on(cfg, FOLD, LAST, CHECKPOINT)
    model = build(cfg)
    assert [name for name, _ in model.named_modules()] == [n for n, _ in stock.named_modules()]
    ours, expected = model.state_dict(), stock.state_dict()
    assert list(ours) == list(expected)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    model.load_state_dict(expected)
    stock.load_state_dict(ours)


def test_copies_compute_the_same(cfg, batch):
    switch_on(cfg, FOLD, LAST, CHECKPOINT)
    model = build(cfg)
    twin = copy.deepcopy(model)
    ours, stock = train(twin, batch), train(model, batch)
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


def formats(model: nn.Module, inputs) -> dict[str, bool]:
    """For every convolution that runs, whether it gets its map pixel by pixel."""
    found: dict[str, bool] = {}

    def look(name):
        def hook(layer, args):
            found[name] = args[0].is_contiguous(memory_format=torch.channels_last)

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(look(name))
    train(model, inputs)
    return found


def test_channels_last_reaches_every_map_of_backbone_and_rpn(cfg, batch):
    cfg.MODEL.META_ARCHITECTURE = "SeamlessPanoptic"
    assert not formats(build(cfg), batch)["backbone.bottom_up.res3.0.conv1"]
    switch_on(cfg, LAST)
    found = formats(build(cfg), batch)
    maps = {name: last for name, last in found.items() if not name.startswith("roi_heads.")}
    assert len(maps) > 30
    assert all(maps.values()), maps
    # regions come from RoIAlign, and change with the first convolution
    assert not found["roi_heads.mask_head.mask_fcn1"]
    assert found["roi_heads.mask_head.predictor"]


def test_channels_last_weights_and_their_gradients(cfg, batch):
    switch_on(cfg, LAST)
    model = build(cfg)
    train(model, batch)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 4:
            assert parameter.is_contiguous(memory_format=torch.channels_last), name
            assert parameter.grad.is_contiguous(memory_format=torch.channels_last), name
        else:
            assert parameter.is_contiguous(), name


def test_channels_last_predicts_the_same(cfg, batch):
    stock = build(cfg).eval()
    switch_on(cfg, LAST)
    model = build(cfg).eval()
    x = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        ours, expected = model.backbone(x), stock.backbone(x)
        assert len(model(batch)) == len(batch)
    for name in expected:
        torch.testing.assert_close(ours[name], expected[name], rtol=1e-4, atol=1e-4)


def test_compile_asks_for_a_compiler_first(cfg, monkeypatch):
    asked = []
    monkeypatch.setattr(dense, "check_compiler", asked.append)
    monkeypatch.setattr(
        dense, "compile_dense_parts", lambda model, **how: asked.extend([type(model), how])
    )
    cfg.MODEL.COMPILE = True
    model = build_model(cfg)
    assert asked == ["cpu", type(model), {"mode": "default", "sizes_vary": True}]
    cfg.MODEL.COMPILE_MODE, cfg.INPUT.SIZE_DIVISIBILITY = "max-autotune", 64
    build_model(cfg)
    assert asked[-1] == {"mode": "max-autotune", "sizes_vary": False}


@pytest.mark.parametrize(
    ("mode", "batches", "message"),
    [
        ("fastest", 1, "COMPILE_MODE 'fastest': use default, reduce-overhead, max-autotune"),
        ("reduce-overhead", 2, "reduce-overhead: CUDA graphs do not add up .*ACCUMULATE_STEPS 2"),
        ("max-autotune", 2, "max-autotune: CUDA graphs do not add up"),
    ],
)
def test_compile_modes_that_cannot_be(cfg, mode, batches, message):
    cfg.MODEL.COMPILE, cfg.MODEL.COMPILE_MODE = True, mode
    cfg.SOLVER.ACCUMULATE_STEPS = batches
    with pytest.raises(D2CityscapesError, match=message):
        build_model(cfg)


def test_group_norms_on_a_gpu_are_said_to_be_no_gain(caplog):
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    with caplog.at_level("WARNING", logger=dense.logger.name):
        use_channels_last(model)
        assert not caplog.messages
        use_channels_last(model, device="cuda:1")
    (message,) = caplog.messages
    assert message.startswith("SOLVER.CHANNELS_LAST: 1 group norms compute map by map")


def test_options_that_reach_nothing_are_refused(cfg):
    cfg.MODEL.RESNETS.NORM = "BN"
    switch_on(cfg, FOLD)
    with pytest.raises(D2CityscapesError, match=r"FOLD_FROZEN_NORM: no convolution"):
        build_model(cfg)
    with pytest.raises(D2CityscapesError, match=r"SOLVER.CHANNELS_LAST: Linear has no backbone"):
        use_channels_last(nn.Linear(2, 2))


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_deeplab_takes_them_too(cfg, norm):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RESNETS.DEPTH = "DeepLabV3Segmentor", 50
    cfg.MODEL.RESNETS.NORM = norm
    stock = build(cfg).eval().double()
    switch_on(cfg, LAST, CHECKPOINT, *([FOLD] if norm == "FrozenBN" else []))
    model = copy.deepcopy(stock)
    set_dense_options(cfg, model)
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    found = []
    for each in (model, stock):
        out = each.train().backbone(x)["out"]
        out.square().mean().backward()
        found.append([out, *(p.grad for p in each.backbone.parameters()), *each.backbone.buffers()])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-10)
