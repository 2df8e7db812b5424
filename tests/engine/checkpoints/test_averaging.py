"""The average of the weights: its arithmetic, and trainings that keep one."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine.hooks import CallbackHook
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine import hook_order
from d2_cityscapes.engine import trainer as trainer_module
from d2_cityscapes.engine.checkpoints.averaging import AveragingHook
from d2_cityscapes.engine.distributed import buffers_stay
from d2_cityscapes.engine.trainer import Trainer, evaluate, setup, train

FREEZE = ["MODEL.FREEZE.MODULES", '["backbone"]',
          "MODEL.FREEZE.SCHEDULE", '[[2, ["backbone.fpn_*"]]]']  # fmt: skip


def start(model: nn.Module, decay: float, *, state: dict | None = None, **optimizer):
    """A hook at the beginning of a training, and its optimizer."""
    optimized = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(optimized, lr=0.5, **optimizer)
    hook = AveragingHook(decay)
    hook.trainer = SimpleNamespace(model=model, optimizer=sgd, start_iter=0)
    if state is not None:
        hook.load_state_dict(state)
    hook.before_train()
    return hook, sgd


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def ramp(decay: float, steps: int) -> float:
    return min(decay, (1 + steps) / (10 + steps))


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_the_average_of_the_formula(fused):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(2, 2))
    model.to(memory_format=torch.channels_last)
    model[2].requires_grad_(False)
    hook, optimizer = start(model, 0.5, fused=fused)
    followed = ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var")
    expected = {name: model.state_dict()[name].double().clone() for name in followed}
    for number in range(20):
        model[:2](torch.randn(2, 2, 5, 5))  # moves the statistics
        step(model, optimizer)
        decay = ramp(0.5, number)
        assert (decay < 0.5) == (number < 8)
        for name in followed:
            now = model.state_dict()[name].double()
            expected[name] = decay * expected[name] + (1 - decay) * now
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with hook.in_place():
        for name in followed:
            now = model.state_dict()[name].double()
            torch.testing.assert_close(now, expected[name], rtol=1e-5, atol=1e-6)
        assert not model[0].weight.equal(weights["0.weight"])
        assert not model[1].running_mean.equal(weights["1.running_mean"])
        assert model[2].weight.equal(weights["2.weight"])  # it does not train
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert hook.state_dict()["averages"].keys() == {*followed}
    assert hook.state_dict()["steps"] == 20


def test_a_short_training_is_averaged_over_its_own_weights():
    """With 0.999 throughout, nine tenths of it would be the weights that it began with."""
    model = nn.Linear(1, 1, bias=False)
    hook, optimizer = start(model, 0.999)
    with torch.no_grad():
        model.weight.zero_()
    hook.before_train()
    for number in range(1, 101):
        with torch.no_grad():
            model.weight.fill_(number)
        model.weight.grad = torch.zeros_like(model.weight)
        optimizer.step()
    with hook.in_place():
        assert 80 < model.weight.item() < 100


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_norms_that_are_frozen_keep_their_statistics_to_the_bit(norm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), norm(3))
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.1, 3)
    model[1].eval().requires_grad_(False)
    hook, optimizer = start(model, 0.9)
    before = {name: tensor.clone() for name, tensor in model[1].state_dict().items()}
    for _ in range(12):
        model(torch.randn(2, 2, 5, 5))
        step(model, optimizer)
    with hook.in_place():
        assert all(tensor.equal(before[name]) for name, tensor in model[1].state_dict().items())


def test_its_state_goes_on():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(6, 2, 2, 5, 5)
    gradients = [[torch.randn_like(p) for p in models[0].parameters()] for _ in images]

    def go(model, optimizer, numbers):
        for number in numbers:
            model(images[number])
            for parameter, gradient in zip(model.parameters(), gradients[number], strict=True):
                parameter.grad = gradient
            optimizer.step()

    whole, optimizer = start(models[0], 0.9)
    go(models[0], optimizer, range(6))
    first, optimizer = start(models[1], 0.9)
    go(models[1], optimizer, range(3))
    state = copy.deepcopy(first.state_dict())
    optimizer._optimizer_step_post_hooks.clear()
    second, optimizer = start(models[1], 0.9, state=state)
    go(models[1], optimizer, range(3, 6))
    assert second.state_dict()["steps"] == 6
    assert_equal(second.state_dict(), whole.state_dict())


def test_an_evaluation_that_fails_gives_the_weights_back():
    model = nn.Linear(3, 2)
    hook, optimizer = start(model, 0.5)
    step(model, optimizer)
    before = model.weight.detach().clone()

    def fail():
        assert not model.weight.equal(before)
        raise KeyError

    with pytest.raises(KeyError):
        hook.averaged(fail)()
    assert model.weight.equal(before)


@pytest.fixture
def configure(repository, tmp_path, tiny_opts, datasets):
    """(folder, overrides) -> config of a small Mask R-CNN that runs for four steps."""

    def make(name: str, *opts: str, eval_only: bool = False):
        args = argparse.Namespace(
            config_file=str(repository / "configs/demo/stage1.yaml"),
            opts=[
                *tiny_opts, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2",
                "TEST.NUM_PICTURES", "0", "OUTPUT_DIR", str(tmp_path / name), *opts,
            ],
            eval_only=eval_only,
        )  # fmt: skip
        return setup(args)

    return make


def saved(path) -> dict:
    return torch.load(path, weights_only=True)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(a: dict, b: dict) -> None:
    """To the bit, at any depth."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            assert_equal(value, b[name])
        else:
            same = value.equal(b[name]) if isinstance(value, torch.Tensor) else value == b[name]
            assert same, name


@pytest.fixture
def evaluated(monkeypatch) -> list[dict]:
    """The weights of every evaluation, in place of what it does."""
    found: list[dict] = []

    def test(cls, cfg, model: nn.Module) -> dict:
        found.append(copied(model))
        return {}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    monkeypatch.setattr(trainer_module, "_check_results", lambda _: None)
    monkeypatch.setattr(hook_order, "_sign_results", lambda _: None)
    return found


def test_training_goes_on_from_the_weights_themselves(configure, evaluated, tmp_path, log):
    """Evaluations are of the average; weights, optimizer and a resumed run are as without it."""
    train(configure("plain", *FREEZE))
    plain = saved(tmp_path / "plain/model_final.pth")
    del evaluated[:]

    cfg = configure("ema", *FREEZE, "SOLVER.EMA_DECAY", "0.7", "TEST.EVAL_PERIOD", "2")
    trainer = Trainer(cfg)
    steps = [copied(trainer.model)]
    trainer.register_hooks([CallbackHook(after_step=lambda t: steps.append(copied(t.model)))])
    trainer.train()
    whole = saved(tmp_path / "ema/model_final.pth")
    assert_equal(whole["model"], plain["model"])
    assert_equal(whole["trainer"]["_trainer"], plain["trainer"]["_trainer"])
    average = dict(steps[0])
    for number, weights in enumerate(steps[1:], start=1):
        decay = ramp(0.7, number - 1)
        for name, weight in weights.items():
            if not weight.is_floating_point():  # counters of norms
                average[name] = weight
            elif not weight.equal(average[name]):
                average[name] = decay * average[name] + (1 - decay) * weight
        if number in (2, 4):
            torch.testing.assert_close(evaluated[number // 2 - 1], average, rtol=1e-5, atol=1e-6)
    assert len(evaluated) == 2
    moved = {name for name, weight in weights.items() if not weight.equal(evaluated[1][name])}
    assert any(name.startswith("backbone.fpn_") for name in moved)
    assert not any(name.startswith("backbone.bottom_up") for name in moved)
    assert_equal(saved(tmp_path / "ema/model_final_ema.pth")["model"], evaluated[1])

    (tmp_path / "ema/last_checkpoint").write_text("model_0000001.pth")
    train(cfg, resume=True)
    assert_equal(saved(tmp_path / "ema/model_final.pth"), whole)
    assert_equal(evaluated[2], evaluated[1])
    assert "no average" not in log.text


def test_the_file_is_what_was_evaluated(configure, tmp_path):
    train(configure("ema", "SOLVER.EMA_DECAY", "0.7", "SOLVER.MAX_ITER", "1"))
    results = json.loads((tmp_path / "ema/results.json").read_text())
    written = (tmp_path / "ema/model_final_ema.pth").read_bytes()
    assert results["weights_sha256"] == hashlib.sha256(written).hexdigest()
    weights = ["MODEL.WEIGHTS", str(tmp_path / "ema/model_final_ema.pth")]
    evaluate(configure("again", *weights, eval_only=True))
    again = json.loads((tmp_path / "again/results.json").read_text())
    assert again["results"] == results["results"]
    assert again["weights_sha256"] == results["weights_sha256"]


@pytest.mark.usefixtures("evaluated")
def test_a_run_that_only_lacks_the_average_writes_it(configure, tmp_path):
    """It was killed between its last checkpoint and this file, which the next stage takes."""
    ema = ["SOLVER.EMA_DECAY", "0.7", "SOLVER.MAX_ITER", "2"]
    train(configure("a", *ema))
    first = saved(tmp_path / "a/model_final_ema.pth")
    (tmp_path / "a/model_final_ema.pth").unlink()
    train(configure("a", *ema), resume=True)
    assert_equal(saved(tmp_path / "a/model_final_ema.pth")["model"], first["model"])
    next_stage = configure("b", "MODEL.WEIGHTS", str(tmp_path / "a/model_final_ema.pth"), *ema[2:])
    trainer = Trainer(next_stage)
    trainer.resume_or_load(resume=False)
    assert_equal(trainer.model.state_dict(), first["model"])


@pytest.mark.usefixtures("evaluated")
def test_a_model_that_is_wrapped_again_keeps_its_average(configure, tmp_path, monkeypatch, log):
    ema = ["SOLVER.EMA_DECAY", "0.7", "SOLVER.MAX_ITER", "3", *FREEZE]
    train(configure("alone", *ema))

    def wrap(cfg, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True, **buffers_stay())

    monkeypatch.setattr("d2_cityscapes.engine.trainer.distribute", wrap)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        train(configure("wrapped", *ema))
    finally:
        torch.distributed.destroy_process_group()
    assert "Iteration 2: unfrozen" in log.text
    alone, wrapped = (
        saved(tmp_path / name / "model_final_ema.pth")["model"] for name in ("alone", "wrapped")
    )
    assert_equal(wrapped, alone)


@pytest.mark.usefixtures("evaluated")
def test_an_average_that_begins_late_says_so(configure, tmp_path, log):
    train(configure("a", "SOLVER.MAX_ITER", "2"))
    train(configure("a", "SOLVER.MAX_ITER", "2", "SOLVER.EMA_DECAY", "0.7"), resume=True)
    assert "no average of the weights in the checkpoint" in log.text
    average = saved(tmp_path / "a/model_final_ema.pth")["model"]
    assert_equal(average, saved(tmp_path / "a/model_final.pth")["model"])
