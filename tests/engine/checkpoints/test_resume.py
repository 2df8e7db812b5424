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

from d2_cityscapes.engine import trainer as trainer_module
from d2_cityscapes.engine.checkpoints.resume import check_freeze_settings, freeze_settings
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
    monkeypatch.setattr(trainer_module, "_sign_results", lambda _: None)


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


@pytest.mark.usefixtures("no_evaluation")
def test_a_distributed_run_keeps_to_the_model_of_its_phase(configure, tmp_path, monkeypatch):
    """Precise batch norm, checkpoints and validation see the model; so does a resumed run."""
    opts = [*FREEZE, "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "1",
            "TEST.EVAL_PERIOD", "4", "TEST.VAL_LOSS_PERIOD", "2"]  # fmt: skip
    train(configure(*opts))
    alone = saved(tmp_path, "model_final")["model"]

    def wrap(_, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)

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
    resumed = saved(tmp_path, "model_final")["model"]
    for name in resumed:  # precise statistics are of other images after a resume
        assert "running_" in name or resumed[name].equal(alone[name]), name


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
