"""Resuming a run with frozen modules: exact in every phase, refused under other freeze lists."""

from __future__ import annotations

import argparse
import itertools
import runpy
import sys

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2_cityscapes.engine import hook_order
from d2_cityscapes.engine import trainer as trainer_module
from d2_cityscapes.engine.checkpoints.checkpointer import CheckpointError
from d2_cityscapes.engine.checkpoints.resume import (
    check_freeze_settings,
    freeze_settings,
    parameter_names,
)
from d2_cityscapes.engine.distributed import buffers_stay
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import Trainer, setup, train
from d2_cityscapes.modeling.freezing.freeze import FreezeError

SCHEDULE = '[[2, ["backbone.fpn_*"]], [3, ["backbone.bottom_up.res5"]]]'
FREEZE = ["MODEL.FREEZE.MODULES", '["backbone"]', "MODEL.FREEZE.SCHEDULE", SCHEDULE]
RUN = ["SOLVER.MAX_ITER", "5", "SOLVER.CHECKPOINT_PERIOD", "1"]


@pytest.fixture
def configure(repository, tmp_path, tiny_opts, datasets):
    """Overrides -> config of a small Mask R-CNN, with OUTPUT_DIR in the test's folder."""

    def make(*opts: str):
        args = argparse.Namespace(
            config_file=str(repository / "configs/demo/stage1.yaml"),
            opts=[*tiny_opts, *RUN, "OUTPUT_DIR", str(tmp_path / "out"), *opts],
            eval_only=False,
        )
        return setup(args)

    return make


@pytest.fixture
def no_evaluation(monkeypatch):
    """Leave out what follows the last step."""
    monkeypatch.setattr(Trainer, "test", classmethod(lambda *_, **__: {}))
    monkeypatch.setattr(trainer_module, "_check_results", lambda _: None)
    monkeypatch.setattr(hook_order, "_sign_results", lambda _: None)


def saved(folder, name: str) -> dict:
    return torch.load(folder / "out" / f"{name}.pth", weights_only=True)


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, dict):
            assert_equal(value, b[name])
        else:
            assert value.equal(b[name]) if isinstance(value, torch.Tensor) else value == b[name]


@pytest.mark.usefixtures("no_evaluation")
def test_resume_in_every_phase_is_exact(configure, tmp_path):
    cfg = configure(*FREEZE)
    train(cfg)
    whole = saved(tmp_path, "model_final")
    steps = [saved(tmp_path, f"model_{step:07d}")["model"] for step in range(5)]
    moved = [
        {name for name, tensor in before.items() if not tensor.equal(after[name])}
        for before, after in itertools.pairwise(steps)
    ]
    for step, names in enumerate(moved, start=1):
        assert any(n.startswith("backbone.fpn_") for n in names) == (step >= 2)
        assert any(n.startswith("backbone.bottom_up.res5") for n in names) == (step >= 3)
        assert not any(n.startswith("backbone.bottom_up.res4") for n in names)
    for step in range(4):
        (tmp_path / "out/last_checkpoint").write_text(f"model_{step:07d}.pth")
        train(cfg, resume=True)
        halves = saved(tmp_path, "model_final")
        assert_equal(halves["model"], whole["model"])
        assert_equal(
            halves["trainer"]["_trainer"]["optimizer"], whole["trainer"]["_trainer"]["optimizer"]
        )


OTHERS = [
    ["MODEL.FREEZE.MODULES", "[]", "MODEL.FREEZE.SCHEDULE", "[]"],
    ["MODEL.FREEZE.MODULES", '["backbone.bottom_up"]', "MODEL.FREEZE.SCHEDULE", "[]"],
    [*FREEZE[:3], '[[2, ["backbone.fpn_*"]]]'],
    [*FREEZE, "MODEL.FREEZE.NORM_EVAL", "False"],
]


@pytest.mark.usefixtures("no_evaluation")
def test_other_freeze_lists_are_refused_before_a_step(configure, tmp_path, monkeypatch):
    short = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    train(configure(*FREEZE, *short))
    checkpoint = tmp_path / "out/model_0000001.pth"
    (tmp_path / "out/last_checkpoint").write_text(checkpoint.name)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "run_step", lambda _: pytest.fail("it trains"))
        for others in OTHERS:
            with pytest.raises(FreezeError) as error:
                train(configure(*others), resume=True)
            message = str(error.value)
            assert "\n" not in message
            assert "MODULES ['backbone'], SCHEDULE [[2, ['backbone.fpn_*']], [3, " in message
            modules = others[1].replace('"', "'")
            assert f"with MODULES {modules}" in message
            assert f"new OUTPUT_DIR with MODEL.WEIGHTS {checkpoint}" in message
    way_out = ["OUTPUT_DIR", str(tmp_path / "other"), "MODEL.WEIGHTS", str(checkpoint)]
    train(configure(*OTHERS[0], *way_out, "SOLVER.MAX_ITER", "1"), resume=True)
    assert (tmp_path / "other/model_final.pth").is_file()


def config(*opts: str):
    return load_config("", opts)


def test_the_same_lists_in_another_order_are_the_same(log):
    a = config("MODEL.FREEZE.MODULES", '["a", "b"]', "MODEL.FREEZE.SCHEDULE", '[[1, ["a", "b"]]]')
    b = config("MODEL.FREEZE.MODULES", '("b", "a")', "MODEL.FREEZE.SCHEDULE", '((1, ("b", "a")),)')
    check_freeze_settings(freeze_settings(a), b, "model.pth")
    off = config("MODEL.FREEZE.NORM_EVAL", "False")
    check_freeze_settings(freeze_settings(config()), off, "model.pth")  # nothing is frozen
    assert "model.pth" not in log.text


def test_older_checkpoints_are_warned_of(log):
    check_freeze_settings(None, config("MODEL.FREEZE.MODULES", '["a"]'), "old.pth")
    assert "old.pth does not say what was frozen" in log.text


# --- other settings of SOLVER ---


def begin(configure, *opts: str) -> None:
    """Four steps of SGD at a constant rate, with the checkpoint behind the second."""
    train(configure(*SGD, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2", *opts))


SGD = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.LR_SCHEDULER_NAME", "WarmupConstantLR",
       "SOLVER.BASE_LR", "0.002", "SOLVER.WEIGHT_DECAY", "0.0001",
       "MODEL.FREEZE.MODULES", "[]"]  # fmt: skip


@pytest.mark.usefixtures("no_evaluation")
def test_the_config_decides_how_a_resumed_run_steps(configure, tmp_path, log):
    begin(configure)
    cfg = configure(*SGD, "SOLVER.BASE_LR", "1e-7", "SOLVER.WEIGHT_DECAY", "0.5",
                    "SOLVER.MOMENTUM", "0.3", "SOLVER.MAX_ITER", "6")  # fmt: skip
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    groups = trainer.optimizer.param_groups
    assert {group["lr"] for group in groups} == {1e-7} and trainer.scheduler.base_lrs[0] == 1e-7
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert {group["momentum"] for group in groups} == {0.3}
    assert (
        "from iteration 4 on: SOLVER.BASE_LR 1e-07 (was 0.002), SOLVER.CHECKPOINT_PERIOD 1 (was "
        "2), SOLVER.MAX_ITER 6 (was 4), SOLVER.MOMENTUM 0.3 (was 0.9), SOLVER.WEIGHT_DECAY 0.5 "
        "(was 0.0001)"
    ) in log.text
    trainer.train()
    assert saved(tmp_path, "model_final")["trainer"]["hooks"]["LRScheduler"]["base_lrs"][0] == 1e-7


@pytest.mark.usefixtures("no_evaluation")
def test_unchanged_settings_are_not_spoken_of(configure, tmp_path, log):
    begin(configure)
    (tmp_path / "out/last_checkpoint").write_text("model_0000001.pth")
    train(configure(*SGD, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"), resume=True)
    assert "(was " not in log.text


@pytest.mark.usefixtures("no_evaluation")
def test_momentum_follows_its_parameter_into_other_groups(configure, tmp_path):
    """A rate of their own for biases makes a group of them."""
    begin(configure)
    before = saved(tmp_path, "model_final")["trainer"]
    trainer = Trainer(configure(*SGD, "SOLVER.BIAS_LR_FACTOR", "2.0"))
    trainer.resume_or_load(resume=True)
    groups = parameter_names(trainer.model, trainer.optimizer)
    assert len(groups) > len(before["parameters"])
    names = [name for group in groups for name in group]
    old = [name for group in before["parameters"] for name in group]
    assert names != old and sorted(names) == sorted(old)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.002, 0.004}
    states = before["_trainer"]["optimizer"]["state"]
    parameters = dict(trainer.model.named_parameters())
    for number, name in enumerate(old):
        momentum = trainer.optimizer.state[parameters[name]]["momentum_buffer"]
        assert momentum.equal(states[number]["momentum_buffer"]), name


@pytest.mark.usefixtures("no_evaluation")
def test_what_cannot_change_leaves_the_record_of_the_run_alone(
    configure, repository, tmp_path, tiny_opts, call
):
    begin(configure)
    record = (tmp_path / "out/config.yaml").read_bytes()
    checkpoint = tmp_path / "out/model_final.pth"
    for change, message in (
        (["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.MAX_ITER", "9"],
         f"{checkpoint} was trained with SOLVER.OPTIMIZER SGD, and cannot be resumed with ADAMW"),
        (["MODEL.FREEZE.MODULES", '["backbone"]', "SOLVER.MAX_ITER", "9"],
         f"{checkpoint} was trained with MODEL.FREEZE"),
        (["SOLVER.BASE_LR", "1e-7", "SOLVER.MAX_ITER", "4"],
         f"{checkpoint} has all 4 steps behind it, and none would be made with SOLVER.BASE_LR"),
    ):  # fmt: skip
        code, _, errors = call(
            "tools/train_net.py", "--config-file", repository / "configs/demo/stage1.yaml",
            "--resume", *tiny_opts, *SGD,
            "OUTPUT_DIR", tmp_path / "out", *change,
        )  # fmt: skip
        line = errors.strip().splitlines()[-1]
        assert code == 1 and line.startswith("error: ") and message in line
        assert (tmp_path / "out/config.yaml").read_bytes() == record


@pytest.mark.usefixtures("no_evaluation")
def test_a_checkpoint_of_another_trainer_is_one_line(configure, tmp_path):
    begin(configure)
    content = saved(tmp_path, "model_final")
    del content["trainer"]["_trainer"]  # as Detectron2 0.6 writes it
    torch.save(content, tmp_path / "out/model_final.pth")
    with pytest.raises(CheckpointError, match=r"model_final.pth: cannot be resumed from, as it"):
        Trainer(configure(*SGD, "SOLVER.MAX_ITER", "6")).resume_or_load(resume=True)


@pytest.mark.usefixtures("no_evaluation")
def test_a_distributed_run_keeps_to_the_model_of_its_phase(configure, tmp_path, monkeypatch):
    """Checkpoints and validation see the model; so does a resumed run."""
    opts = [*FREEZE, "TEST.EVAL_PERIOD", "4", "TEST.VAL_LOSS_PERIOD", "2"]
    train(configure(*opts))
    alone = saved(tmp_path, "model_final")["model"]

    def wrap(_, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, find_unused_parameters=True, **buffers_stay())

    monkeypatch.setattr(trainer_module, "distribute", wrap)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        cfg = configure(*opts, "OUTPUT_DIR", str(tmp_path / "out"))
        trainer = Trainer(cfg)
        first = trainer.model
        trainer.resume_or_load(resume=False)
        trainer.train()
        assert isinstance(trainer.model, DistributedDataParallel) and trainer.model is not first
        assert trainer.model.module is first.module is trainer.checkpointer.model
        assert_equal(saved(tmp_path, "model_final")["model"], alone)
        (tmp_path / "out/last_checkpoint").write_text("model_0000003.pth")
        train(cfg, resume=True)
    finally:
        torch.distributed.destroy_process_group()
    assert_equal(saved(tmp_path, "model_final")["model"], alone)


def test_the_command_unfreezes_and_refuses(
    repository, datasets, tmp_path, tiny_opts, monkeypatch, capsys
):
    def call(*more: str) -> tuple[int, str]:
        arguments = ["--config-file", repository / "configs/demo/stage1.yaml", *more, *tiny_opts,
                     "OUTPUT_DIR", tmp_path / "out"]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(repository / "tools/train_net.py"), run_name="__main__")
        return leaving.value.code, capsys.readouterr().err

    assert call(*FREEZE[:3], '[[2, ["backbone.fpn_*"]]]')[0] == 0
    log = (tmp_path / "out/log.txt").read_text()
    assert "Iteration 2: unfrozen by MODEL.FREEZE.SCHEDULE" in log
    assert (tmp_path / "out/results.json").is_file()
    code, errors = call("--resume")
    assert code == 1 and "Traceback" not in errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ") and "model_final.pth was trained with MODEL.FREEZE" in line
