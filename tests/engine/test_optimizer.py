"""SOLVER.OPTIMIZER acts, and its default is Detectron2's SGD."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm, get_norm
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from d2_cityscapes.engine.optimizer import build_optimizer
from d2_cityscapes.engine.setup import ConfigError, load_config


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def _config(*opts: str):
    solver = ["SOLVER.BASE_LR", "0.01", "SOLVER.WEIGHT_DECAY", "0.1"]
    return load_config("", [*solver, *opts])


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    model(torch.arange(48.0).view(1, 3, 4, 4) / 48).square().sum().backward()
    optimizer.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_the_default_is_detectron2s_sgd_bit_for_bit():
    cfg = _config("SOLVER.NESTEROV", "True")
    ours, stock = _model().eval(), _model().eval()
    after_ours = _step(ours, build_optimizer(cfg, ours))
    after_stock = _step(stock, build_detectron2_optimizer(cfg, stock))
    assert all(map(torch.equal, after_ours, after_stock))


@pytest.mark.parametrize(
    ("name", "kind"), [("ADAM", torch.optim.Adam), ("ADAMW", torch.optim.AdamW)]
)
def test_adam_equals_pytorchs_own(name, kind):
    cfg = _config("SOLVER.OPTIMIZER", name, "SOLVER.WEIGHT_DECAY_NORM", "0.1")
    ours, plain = _model().eval(), _model().eval()
    after = _step(ours, build_optimizer(cfg, ours))
    expected = _step(plain, kind(plain.parameters(), lr=0.01, weight_decay=0.1))
    for a, b in zip(after, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["value", "norm"])
def test_clipping_is_detectron2s_bit_for_bit(kind):
    """Also where a parameter has no gradient, which Detectron2 leaves to PyTorch."""
    cfg = _config(
        "SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01",
    )  # fmt: skip
    ours, stock, unclipped = _model().eval(), _model().eval(), _model().eval()
    after_ours = _step(ours, build_optimizer(cfg, ours))
    assert all(map(torch.equal, after_ours, _step(stock, build_detectron2_optimizer(cfg, stock))))
    free = _step(unclipped, build_optimizer(_config(), unclipped))
    assert not any(map(torch.equal, after_ours, free))
    optimizer = build_optimizer(cfg, ours)
    ours[3].weight.grad = None
    optimizer.step()
    assert ours[3].weight.equal(after_ours[4]) and not ours[3].bias.equal(after_ours[5])


def test_an_unknown_way_of_clipping():
    cfg = _config("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "max")
    with pytest.raises(ConfigError, match="'max': use value or norm"):
        build_optimizer(cfg, _model())


def test_norm_decay_and_frozen_parameters():
    model = _model()
    model[0].requires_grad_(False)
    cfg = _config("SOLVER.OPTIMIZER", "ADAMW", "SOLVER.WEIGHT_DECAY_NORM", "0.0")
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert model[0].weight not in decays
    assert decays[model[1].weight] == 0.0 and decays[model[3].weight] == 0.1


NORMS = {name: get_norm(name, 32) for name in ("BN", "GN", "nnSyncBN", "naiveSyncBN", "SyncBN")}


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM", "ADAMW"])
@pytest.mark.parametrize(
    "norm",
    [*NORMS.values(), nn.InstanceNorm2d(32, affine=True), nn.LayerNorm(32), NaiveSyncBatchNorm(32)],
    ids=lambda norm: type(norm).__name__,
)
def test_norms_of_every_kind_are_exempt_from_weight_decay(optimizer, norm):
    model = nn.Sequential(nn.Conv2d(3, 32, 1), norm)
    built = build_optimizer(_config("SOLVER.OPTIMIZER", optimizer), model)
    decays = {p: g["weight_decay"] for g in built.param_groups for p in g["params"]}
    assert [decays[p] for p in model.parameters()] == [0.1, 0.1, 0.0, 0.0]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    built.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, bool(before[1].any()), False, False], "without gradient, only decay acts"


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM", "ADAMW"])
def test_norms_of_torchvisions_deeplab_are_exempt(optimizer):
    with torch.device("meta"):
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    built = build_optimizer(_config("SOLVER.OPTIMIZER", optimizer), model)
    decays = {p: g["weight_decay"] for g in built.param_groups for p in g["params"]}
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    exempt = {p for norm in norms for p in norm.parameters()}
    assert len(exempt) == 2 * 61 and len(decays) == len(list(model.parameters()))
    assert all(decay == (0.0 if p in exempt else 0.1) for p, decay in decays.items())


@pytest.mark.parametrize("optimizer", ["SGD", "ADAM", "ADAMW"])
def test_settings_that_pytorch_refuses(optimizer):
    name = ["SOLVER.OPTIMIZER", optimizer]
    with pytest.raises(ConfigError, match=f"'{optimizer}': Invalid learning rate"):
        build_optimizer(_config(*name, "SOLVER.BASE_LR", "-1.0"), _model())


def test_nesterov_needs_momentum():
    cfg = _config("SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0.0")
    with pytest.raises(ConfigError, match=r"'SGD': Nesterov momentum requires a momentum"):
        build_optimizer(cfg, _model())


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="'LION': use SGD, ADAM or ADAMW"):
        build_optimizer(_config("SOLVER.OPTIMIZER", "LION"), _model())
