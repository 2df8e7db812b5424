"""SOLVER.OPTIMIZER and FUSED act, and their default is Detectron2's SGD."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import NaiveSyncBatchNorm, get_norm
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.step.optimizer import _clip_gradients, build_optimizer, largest_gradient
from d2_cityscapes.modeling.freezing.freeze import freeze_modules


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


@pytest.mark.parametrize(
    ("kind", "norm_type"), [("value", "2.0"), ("norm", "1.0"), ("norm", "2.0"), ("norm", "1e999")]
)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e25])
def test_clipping_is_that_of_each_parameter_bit_for_bit(kind, norm_type, scale):
    """In every type, and with gradients that are missing or empty."""
    torch.manual_seed(0)
    types = [torch.float32, torch.bfloat16, torch.float64, torch.float32]
    parameters = [
        nn.Parameter(torch.zeros(shape, dtype=dtype))
        for dtype in types
        for shape in ((1,), (3, 5), (1000,), ())
    ]
    parameters.append(nn.Parameter(torch.zeros(0)))
    for number, parameter in enumerate(parameters):
        parameter.grad = torch.randn_like(parameter).mul_(scale)
        if number % 5 == 4:
            parameter.grad = None
    copies = [None if p.grad is None else p.grad.clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    _clip_gradients(optimizer, kind, 0.3, float(norm_type))
    for parameter, copy in zip(parameters, copies, strict=True):
        if copy is None:
            assert parameter.grad is None
            continue
        alone = nn.Parameter(torch.zeros_like(copy))
        alone.grad = copy
        if kind == "value":
            nn.utils.clip_grad_value_(alone, 0.3)
        elif copy.numel():
            nn.utils.clip_grad_norm_(alone, 0.3, float(norm_type))
        assert parameter.grad.equal(copy)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan"), 3e38, -5.0])
@pytest.mark.parametrize("place", [0, 2])
def test_the_largest_gradient_is_finite_where_all_are(value, place):
    """Those that only their sum would make infinite are finite."""
    parameters = [nn.Parameter(torch.zeros(4)) for _ in range(3)]
    parameters += [nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(0))]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    assert largest_gradient(optimizer) == 0
    for parameter in (parameters[0], *parameters[2:]):
        parameter.grad = torch.ones_like(parameter)
    parameters[place].grad[1:] = value
    found = largest_gradient(optimizer).item()
    expected = torch.tensor(value).abs().item()
    assert found == expected or (found != found and value != value)


def test_clipping_of_the_whole_model_keeps_the_direction():
    """Gradients (3), (0, 4) and none: of length 5 together, 0.01 after."""
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]
    cfg = _config(*clip, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "SOLVER.BASE_LR", "1.0",
                  "SOLVER.MOMENTUM", "0.0", "SOLVER.WEIGHT_DECAY", "0.0")  # fmt: skip
    model = nn.ParameterList([torch.zeros(1), torch.zeros(2), torch.zeros(1)])
    optimizer = build_optimizer(cfg, model)
    for scale, length in ((1.0, 0.01), (1e-4, 5e-4)):  # the second is short enough as it is
        model[0].grad, model[1].grad = torch.tensor([3.0]), torch.tensor([0.0, 4.0])
        for parameter in (model[0], model[1]):
            parameter.grad *= scale
            nn.init.zeros_(parameter)
        optimizer.step()
        moved = [*model[0].tolist(), *model[1].tolist(), *model[2].tolist()]
        assert moved == pytest.approx([-0.6 * length, 0.0, -0.8 * length, 0.0], rel=1e-4)


def test_an_unknown_way_of_clipping():
    cfg = _config("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "max")
    with pytest.raises(ConfigError, match="'max': use value or norm or full_model"):
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


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
    """As many steps with gradients that follow from their number."""
    for number in range(start, start + count):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter).copy_(drawn)
        optimizer.step()


def _assert_close(a: nn.Module, b: nn.Module) -> None:
    torch.testing.assert_close(list(a.parameters()), list(b.parameters()), rtol=1e-6, atol=1e-7)


OPTIMIZERS = {
    "SGD": ["SOLVER.OPTIMIZER", "SGD"],
    "Nesterov": ["SOLVER.NESTEROV", "True", "SOLVER.BIAS_LR_FACTOR", "2.0"],
    "no momentum": ["SOLVER.MOMENTUM", "0.0"],
    "Adam": ["SOLVER.OPTIMIZER", "ADAM"],
    "AdamW": ["SOLVER.OPTIMIZER", "ADAMW"],
}


@pytest.fixture(params=OPTIMIZERS)
def both(request):
    """The configs of an optimizer, as it is and fused."""
    opts = OPTIMIZERS[request.param]
    return [_config(*opts, "SOLVER.FUSED", fused) for fused in ("False", "True")]


def test_fused_is_the_same_optimizer(both):
    models = [_model(), _model()]
    plain, fused = (build_optimizer(cfg, model) for cfg, model in zip(both, models, strict=True))
    assert all(group["fused"] for group in fused.param_groups)
    for name in ("lr", "weight_decay", "momentum", "nesterov", "betas"):
        assert [g.get(name) for g in plain.param_groups] == [
            g.get(name) for g in fused.param_groups
        ]
    _steps(models[0], plain, 3)
    _steps(models[1], fused, 3)
    _assert_close(*models)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["to fused", "from fused"])
@pytest.mark.parametrize("other_layout", [False, True])
def test_fused_takes_over_and_hands_over(both, order, other_layout):
    """Also where images are kept in memory in another order than before."""
    whole, model = _model(), _model()
    first = build_optimizer(both[order[0]], model)
    if other_layout:
        model.to(memory_format=torch.channels_last)
    _steps(model, first, 2)
    second_model = _model()
    second_model.load_state_dict(model.state_dict())
    second = build_optimizer(both[order[1]], second_model)
    second.load_state_dict(first.state_dict())
    assert all(bool(group["fused"]) == (order[1] == 1) for group in second.param_groups)
    _steps(second_model, second, 2, start=2)
    _steps(whole, build_optimizer(both[0], whole), 4)
    _assert_close(whole, second_model)


def test_fused_resumes_exactly(both):
    whole, model = _model(), _model()
    first = build_optimizer(both[1], model)
    _steps(model, first, 2)
    resumed = _model()
    resumed.load_state_dict(model.state_dict())
    second = build_optimizer(both[1], resumed)
    second.load_state_dict(first.state_dict())
    _steps(resumed, second, 2, start=2)
    _steps(whole, build_optimizer(both[1], whole), 4)
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))


def test_what_is_unfrozen_later_joins_a_fused_step(both):
    models = [_model(), _model()]
    for cfg, model in zip(both, models, strict=True):
        freeze_modules(model, ["0", "1"], [[2, ["0"]]])
        optimizer = build_optimizer(cfg, model)
        _steps(model, optimizer, 2)
        model[0].requires_grad_(True)
        _steps(model, optimizer, 2, start=2)
    _assert_close(*models)
    assert not models[1][0].weight.equal(_model()[0].weight)
    assert models[1][1].weight.equal(_model()[1].weight)


@pytest.mark.parametrize("kind", ["value", "norm", "full_model"])
def test_fused_steps_are_clipped(kind, both):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", kind,
            "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.01"]  # fmt: skip
    models = [_model(), _model(), _model()]
    for cfg, model in zip([*both, both[1]], models, strict=True):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.merge_from_list(clip if model is not models[2] else [])
        _steps(model, build_optimizer(cfg, model), 2)
    _assert_close(*models[:2])
    assert not models[2][3].weight.equal(models[1][3].weight)


def test_a_device_without_fused_optimizers(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("`fused=True` requires all the params to be on CUDA")

    monkeypatch.setattr(torch.optim.SGD, "__init__", refuse)
    with pytest.raises(ConfigError, match=r"no fused SGD for cpu: set it to False"):
        build_optimizer(_config("SOLVER.FUSED", "True"), _model())


def test_an_unknown_name():
    with pytest.raises(ConfigError, match="'LION': use SGD, ADAM or ADAMW"):
        build_optimizer(_config("SOLVER.OPTIMIZER", "LION"), _model())
