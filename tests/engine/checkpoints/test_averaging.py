"""The average of the weights: its arithmetic, and trainings that keep one."""

from __future__ import annotations

import argparse
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine.hooks import CallbackHook
from torch import nn
from torch.nn.parallel import DistributedDataParallel

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


@pytest.mark.parametrize("fused", [False, True])
def test_it_is_the_average_of_the_formula(fused):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(2, 2))
    model.to(memory_format=torch.channels_last)
    model[2].requires_grad_(False)
    hook, optimizer = start(model, 0.9, fused=fused)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for _ in range(20):
        step(model, optimizer)
        for name, weight in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * weight.detach().double()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with hook.in_place():
        for name, weight in model.named_parameters():
            torch.testing.assert_close(weight.double(), expected[name], rtol=1e-5, atol=1e-6)
        assert not model[0].weight.equal(weights["0.weight"])
        assert model[2].weight.equal(weights["2.weight"])  # it does not train
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert hook.state_dict().keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_its_state_goes_on():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    hook, optimizer = start(model, 0.5)
    step(model, optimizer)
    saved = {name: tensor.clone() for name, tensor in hook.state_dict().items()}
    after, _ = start(model, 0.5, state=saved)
    assert all(tensor.equal(saved[name]) for name, tensor in after.state_dict().items())


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
    monkeypatch.setattr(trainer_module, "_sign_results", lambda _: None)
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
        for name, weight in weights.items():
            if not weight.equal(average[name]):
                average[name] = 0.7 * average[name] + 0.3 * weight
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
