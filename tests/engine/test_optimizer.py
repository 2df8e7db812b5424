"""SOLVER.OPTIMIZER acts, and its default is Detectron2's SGD."""

from __future__ import annotations

import pytest
import torch
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import nn

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


def test_norm_decay_clipping_and_frozen_parameters():
    model = _model()
    model[0].requires_grad_(False)
    cfg = _config(
        "SOLVER.OPTIMIZER", "ADAMW", "SOLVER.CLIP_GRADIENTS.ENABLED", "True",
        "SOLVER.WEIGHT_DECAY_NORM", "0.0",
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW) and "Clip" in type(optimizer).__name__
    decays = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert model[0].weight not in decays
    assert decays[model[1].weight] == 0.0 and decays[model[3].weight] == 0.1


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="'LION': use SGD, ADAM or ADAMW"):
        build_optimizer(_config("SOLVER.OPTIMIZER", "LION"), _model())
