"""Learning rates: Detectron2's own where nothing is set, by hand elsewhere, and after a resume."""

from __future__ import annotations

import argparse
import json
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.engine.hooks import EvalHook
from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR
from detectron2.solver import build_lr_scheduler as build_detectron2
from detectron2.utils import comm
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import ReduceLROnPlateau

from d2_cityscapes.engine.setup import ConfigError, load_config
from d2_cityscapes.engine.step.schedules import PlateauHook, build_lr_scheduler, check_schedule
from d2_cityscapes.engine.trainer import Trainer, setup
from d2_cityscapes.engine.validation_loss import ValidationLossHook


def make_config(name: str, **settings):
    """A config with the SOLVER settings given, validated every second iteration."""
    solver = {
        "LR_SCHEDULER_NAME": name,
        "BASE_LR": 0.1,
        "MAX_ITER": 12,
        "STEPS": (),
        "WARMUP_ITERS": 0,
        **settings,
    }
    opts = [part for key, value in solver.items() for part in (f"SOLVER.{key}", str(value))]
    return load_config("", [*opts, "TEST.VAL_LOSS_PERIOD", "2"])


def make_optimizer(*rates: float) -> torch.optim.Optimizer:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.1)


def learning_rates(scheduler, steps: int) -> list[tuple[float, ...]]:
    """The rates of all parameter groups in each of the steps."""
    rates = []
    for _ in range(steps):
        rates.append(tuple(group["lr"] for group in scheduler.optimizer.param_groups))
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 4, 11, 20])
@pytest.mark.parametrize("name", ["WarmupMultiStepLR", "WarmupCosineLR"])
def test_without_our_keys_they_are_detectron2s_bit_for_bit(name, warmup, method):
    cfg = make_config(name, STEPS=(6, 9), WARMUP_ITERS=warmup, WARMUP_METHOD=method)
    ours = learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1, 0.2)), 12)
    assert ours == learning_rates(build_detectron2(cfg, make_optimizer(0.1, 0.2)), 12)
    assert len(set(ours)) > 2 or warmup > 10


@pytest.mark.skipif(
    "BASE_LR_END" not in get_detectron2_cfg().SOLVER, reason="Detectron2 0.6 has no floor"
)
def test_the_floor_is_that_of_newer_detectron2():
    for rescale in (True, False):
        cfg = make_config(
            "WarmupCosineLR", BASE_LR_END=0.03, WARMUP_ITERS=3, RESCALE_INTERVAL=rescale
        )
        ours = learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1, 0.2)), 12)
        assert ours == learning_rates(build_detectron2(cfg, make_optimizer(0.1, 0.2)), 12)


def test_cosine_with_a_floor_and_a_longer_horizon():
    """Half way between 0.1 and 0.02 in the middle, and at 0.02 from the horizon on."""
    cfg = make_config("WarmupCosineLR", MAX_ITER=4, BASE_LR_END=0.02, COSINE_ITERS=8)
    rates = learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1, 0.2)), 12)
    plain, doubled = zip(*rates, strict=True)
    assert plain[0] == 0.1 and plain[4] == pytest.approx(0.06, abs=1e-15)
    assert plain[2] == pytest.approx(0.02 + 0.04 * (1 + math.sqrt(0.5)))
    assert plain[8:] == (0.02,) * 4
    assert doubled == pytest.approx([2 * rate for rate in plain])


def test_cosine_that_ends_early_stays_at_its_floor():
    cfg = make_config("WarmupCosineLR", BASE_LR_END=0.02, COSINE_ITERS=4, WARMUP_ITERS=2)
    rates = [rate for (rate,) in learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1)), 12)]
    assert rates[2] == pytest.approx(0.06) and rates[4:] == [0.02] * 8


def test_stage_2_of_the_paper_stops_at_six_tenths_of_its_cosine():
    cfg = make_config(
        "WarmupCosineLR", BASE_LR=1e-4, BASE_LR_END=1e-5, COSINE_ITERS=7440, MAX_ITER=4464
    )
    scheduler = build_lr_scheduler(cfg, make_optimizer(1e-4))
    rates = [rate for (rate,) in learning_rates(scheduler, 4465)]
    assert rates[0] == 1e-4
    assert rates[3720] == pytest.approx(5.5e-5)
    assert rates[4464] == pytest.approx(1e-5 + 4.5e-5 * (1 + math.cos(0.6 * math.pi)))


@pytest.mark.parametrize("name", ["WarmupConstantLR", "ReduceLROnPlateau"])
def test_warmup_then_constant(name):
    cfg = make_config(name, WARMUP_FACTOR=0.1, WARMUP_ITERS=4)
    rates = learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1, 0.2)), 12)
    plain, doubled = zip(*rates, strict=True)
    assert plain == pytest.approx([0.01, 0.0325, 0.055, 0.0775] + 8 * [0.1])
    assert plain[4:] == (0.1,) * 8
    assert doubled == pytest.approx([2 * rate for rate in plain])


LOSSES = st.lists(st.floats(0.0, 4.0) | st.just(math.nan), max_size=12)


@given(LOSSES, st.integers(0, 3), st.sampled_from([0.1, 0.5]), st.sampled_from([0.0, 0.03]))
def test_plateaus_are_pytorchs(losses, patience, factor, min_lr):
    plateau = {"PATIENCE": patience, "FACTOR": factor, "THRESHOLD": 0.25, "MIN_LR": min_lr}
    settings = {f"PLATEAU.{key}": value for key, value in plateau.items()}
    optimizer = make_optimizer(0.1, 0.2)
    scheduler = build_lr_scheduler(make_config("ReduceLROnPlateau", **settings), optimizer)
    reference = make_optimizer(0.1)
    pytorchs = ReduceLROnPlateau(
        reference, patience=patience, factor=factor, threshold=0.25, min_lr=min_lr, eps=0.0
    )
    for loss in losses:
        optimizer.step()
        scheduler.step()
        scheduler.step_validation(loss)
        pytorchs.step(loss)
        expected = reference.param_groups[0]["lr"]
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([expected, 2 * expected], rel=1e-12)


@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 4, 20])
@pytest.mark.parametrize(("power", "ending"), [(0.9, 0.0), (2.0, 0.3), (0.0, 0.0)])
def test_poly_is_that_of_detectron2s_deeplab(power, ending, warmup, method):
    settings = {"WARMUP_ITERS": warmup, "WARMUP_METHOD": method, "WARMUP_FACTOR": 0.01}
    poly = {"POLY_LR_POWER": power, "POLY_LR_CONSTANT_ENDING": ending}
    cfg = make_config("WarmupPolyLR", **settings, **poly)
    ours = learning_rates(build_lr_scheduler(cfg, make_optimizer(0.1, 0.2)), 12)
    theirs = WarmupPolyLR(
        make_optimizer(0.1, 0.2), 12, 0.01, warmup, method, power=power, constant_ending=ending
    )
    assert np.allclose(ours, learning_rates(theirs, 12), rtol=1e-14, atol=0)
    assert power == 0 or len(set(ours)) > 5


def test_poly_by_hand():
    """Power 1 over 12 steps; a warm-up of 4 from 0; no lower than 0.4, also behind the end."""
    settings = {"WARMUP_ITERS": 4, "WARMUP_FACTOR": 0.0, "POLY_LR_POWER": 1.0}
    cfg = make_config("WarmupPolyLR", **settings, POLY_LR_CONSTANT_ENDING=0.4)
    rates = learning_rates(build_lr_scheduler(cfg, make_optimizer(12.0)), 14)
    warm, falls = [0, 11 / 4, 10 / 2, 9 * 3 / 4], [8, 7, 6, 5]
    assert [rate for (rate,) in rates] == pytest.approx([*warm, *falls, *[4.8] * 6])


def test_a_plateau_acts_on_the_next_step_and_on_the_warmup():
    settings = {"WARMUP_FACTOR": 0.0, "WARMUP_ITERS": 4, "PLATEAU.PATIENCE": 0}
    optimizer = make_optimizer(0.1)
    scheduler = build_lr_scheduler(make_config("ReduceLROnPlateau", **settings), optimizer)
    rates = []
    for iteration in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if iteration % 2:
            scheduler.step_validation(1.0)  # after iterations 1, 3, 5: all but the first are bad
    rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("stop", range(1, 12))
def test_a_restored_plateau_goes_on_as_it_was(stop):
    settings = {"WARMUP_ITERS": 5, "PLATEAU.PATIENCE": 1, "PLATEAU.FACTOR": 0.3}
    cfg = make_config("ReduceLROnPlateau", **settings)
    losses = [3.0, 2.0, 2.5, 2.1, 1.9, 2.0, 2.0, 2.0, 1.9, 1.8, 1.9, 1.9]

    def run(scheduler, begin: int, end: int) -> list[float]:
        rates = []
        for loss in losses[begin:end]:
            rates.append(scheduler.optimizer.param_groups[0]["lr"])
            scheduler.optimizer.step()
            scheduler.step()
            scheduler.step_validation(loss)
        return rates

    whole = run(build_lr_scheduler(cfg, make_optimizer(0.1)), 0, 12)
    first = build_lr_scheduler(cfg, make_optimizer(0.1))
    rates = run(first, 0, stop)
    second = build_lr_scheduler(cfg, make_optimizer(0.1))
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert rates + run(second, stop, 12) == whole
    assert len({rate for rate in whole[5:]}) > 1, "something was reduced"


def test_a_state_of_another_schedule_begins_without_plateaus():
    constant = build_lr_scheduler(make_config("WarmupConstantLR"), make_optimizer(0.1))
    learning_rates(constant, 5)
    plateau = build_lr_scheduler(make_config("ReduceLROnPlateau"), make_optimizer(0.1))
    plateau.load_state_dict(constant.state_dict())
    assert plateau.last_epoch == 5 and plateau.factor == 1.0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "CosineLR",
            {},
            r"'CosineLR': .*use one of WarmupMultiStepLR, WarmupCosineLR, WarmupPolyLR, "
            "WarmupConstantLR, ReduceLROnPlateau",
        ),
        ("WarmupPolyLR", {"POLY_LR_POWER": -0.1}, r"SOLVER.POLY_LR_POWER -0.1: .* at least 0"),
        ("WarmupPolyLR", {"POLY_LR_CONSTANT_ENDING": 1.1}, r"CONSTANT_ENDING 1.1: .* from 0 to 1"),
        ("WarmupPolyLR", {"WARMUP_METHOD": "exp"}, "Unknown warmup method: exp"),
        ("WarmupMultiStepLR", {"STEPS": "(9, 6)"}, r"'WarmupMultiStepLR': Milestone"),
        ("WarmupConstantLR", {"WARMUP_METHOD": "exp"}, "Unknown warmup method: exp"),
        ("WarmupConstantLR", {"MAX_ITER": 0}, r"SOLVER.MAX_ITER 0: use a number at least 1"),
        ("WarmupCosineLR", {"BASE_LR_END": 0.2}, r"SOLVER.BASE_LR_END 0.2: .* from 0 to 0.1"),
        ("WarmupCosineLR", {"COSINE_ITERS": -1}, r"SOLVER.COSINE_ITERS -1: .* at least 0"),
        ("ReduceLROnPlateau", {"PLATEAU.FACTOR": 1.0}, r"Factor should be < 1.0"),
        ("ReduceLROnPlateau", {"PLATEAU.PATIENCE": -1}, r"SOLVER.PLATEAU.PATIENCE -1"),
        ("ReduceLROnPlateau", {"PLATEAU.MIN_LR": 0.5}, r"SOLVER.PLATEAU.MIN_LR 0.5"),
    ],
)
def test_wrong_settings(name, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_schedule(make_config(name, **settings))
    assert "\n" not in str(caught.value)


def test_plateaus_need_a_validation_loss():
    opts = ["SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau"]
    with pytest.raises(ConfigError, match=r"set TEST\.VAL_LOSS_PERIOD"):
        check_schedule(load_config("", opts))


@pytest.fixture
def configure(repository, datasets, tmp_path, tiny_opts):
    """Overrides -> config of a semantic model that is validated every second iteration.

    No validation loss counts as progress after the first, so that each halves the learning rate.
    """

    def make(*opts: str):
        args = argparse.Namespace(
            config_file=str(repository / "configs/quick/semantic.yaml"),
            opts=[
                *tiny_opts, "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", "7",
                "SOLVER.LR_SCHEDULER_NAME", "ReduceLROnPlateau", "SOLVER.PLATEAU.PATIENCE", "0",
                "SOLVER.PLATEAU.FACTOR", "0.5", "SOLVER.PLATEAU.THRESHOLD", "0.9",
                "SOLVER.BASE_LR", "0.01", "SOLVER.CHECKPOINT_PERIOD", "3",
                "TEST.VAL_LOSS_PERIOD", "2", "TEST.VAL_LOSS_DATASET", "cityscapes_shards_val_1",
                "DATASETS.TEST", "('cityscapes_shards_val_1',)", *opts,
            ],
            eval_only=False,
        )  # fmt: skip
        return setup(args)

    return make


def run_training(cfg, *, resume: bool = False) -> tuple[dict, list[float]]:
    """Train; the final checkpoint and the logged learning rate of each iteration."""
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    final = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)
    return final, [value for value, _ in trainer.storage.history("lr").values()]


def test_plateaus_in_training_and_after_a_stop_anywhere(configure, tmp_path):
    """Validations after iterations 1, 3, 5 and 6, the last one of which is not a regular one."""
    whole, rates = run_training(configure())
    assert rates == [0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.0025]
    lines = map(json.loads, (tmp_path / "out/metrics.json").open())
    assert [(line["iteration"], line["lr"]) for line in lines if "lr" in line] == [(6, 0.0025)]
    scheduler = whole["trainer"]["hooks"]["LRScheduler"]
    assert scheduler["plateau"]["factor"] == 0.25
    for last in (2, 5):  # between two validations, and just after one
        (tmp_path / "out/last_checkpoint").write_text(f"model_{last:07d}.pth")
        resumed, later = run_training(configure(), resume=True)
        assert later == rates[last + 1 :]
        assert all(tensor.equal(resumed["model"][key]) for key, tensor in whole["model"].items())
        assert resumed["trainer"]["hooks"] == whole["trainer"]["hooks"]


def test_a_prolonged_run_forgets_the_validation_at_its_end(configure, tmp_path):
    whole, rates = run_training(configure("OUTPUT_DIR", str(tmp_path / "whole")))
    run_training(configure("SOLVER.MAX_ITER", "5"))
    prolonged, later = run_training(configure(), resume=True)
    assert later == rates[5:]
    assert all(tensor.equal(prolonged["model"][key]) for key, tensor in whole["model"].items())


@pytest.mark.parametrize("main", [True, False])
def test_every_rank_follows_the_plateaus(configure, monkeypatch, main):
    """Ranks that write no checkpoints too."""
    cfg = configure()
    monkeypatch.setattr(comm, "is_main_process", lambda: main)
    kinds = [type(hook) for hook in Trainer(cfg).build_hooks() if hook is not None]
    followed = kinds.index(ValidationLossHook)
    assert kinds[followed + 1] is PlateauHook and EvalHook in kinds[followed:]
    without = configure("SOLVER.LR_SCHEDULER_NAME", "WarmupConstantLR")
    assert PlateauHook not in [type(hook) for hook in Trainer(without).build_hooks()]
