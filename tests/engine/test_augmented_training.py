"""Trainings with what augments: each switch off is none, each one on acts, all of them resume."""

from __future__ import annotations

import pytest
import tiny_trainings
import torch

pytestmark = pytest.mark.usefixtures("datasets")

SWITCHES = {
    "scale jitter": [
        "INPUT.SCALE_JITTER.ENABLED", "True", "INPUT.SCALE_JITTER.CROP_SIZE", "[64, 96]",
    ],
    "colours": ["INPUT.COLOR_JITTER.ENABLED", "True"],
    "copy-paste": ["INPUT.COPY_PASTE.PROB", "1.0"],
    "small instances": ["INPUT.SMALL_INSTANCE_WEIGHT", "3.0"],
    "classes": ["DATALOADER.SAMPLER_TRAIN", "ClassBalancedTrainingSampler"],
    "small objects": ["DATALOADER.SAMPLER_TRAIN", "SmallObjectTrainingSampler"],
}  # fmt: skip
OFF = [
    "INPUT.SCALE_JITTER.ENABLED", "False", "INPUT.SCALE_JITTER.RANGE", "[0.1, 2.0]",
    "INPUT.COLOR_JITTER.ENABLED", "False", "INPUT.COPY_PASTE.PROB", "0.0",
    "INPUT.COPY_PASTE.SMALL_COPIES", "5", "INPUT.SMALL_INSTANCE_WEIGHT", "1.0",
    "INPUT.SMALL_INSTANCE_AREA", "99", "DATALOADER.BALANCE", "0.9",
]  # fmt: skip
EVERYTHING = [part for name in list(SWITCHES)[:5] for part in SWITCHES[name]]


def weights(family: str, opts: list[str], folder, steps: int) -> dict[str, torch.Tensor]:
    file, small = tiny_trainings.settings(family)
    opts = [*small, "SOLVER.MAX_ITER", str(steps), "INPUT.MIN_INSTANCE_AREA", "8", *opts]
    return tiny_trainings.train(tiny_trainings.config(file, opts, "cpu", folder)).weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["stage0", "stage3", "stage4", "semantic", "stock"])
def test_switches_that_are_off_change_no_bit_in_20_steps(family, tmp_path):
    plain = weights(family, [], tmp_path / "plain", 20)
    assert same(weights(family, OFF, tmp_path / "off", 20), plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["stage3", "stage4", "semantic"])
def test_each_switch_on_changes_the_weights(family, tmp_path):
    plain = weights(family, [], tmp_path / "plain", 3)
    for name, opts in SWITCHES.items():
        assert not same(weights(family, opts, tmp_path / name, 3), plain), name


@pytest.mark.slow
@pytest.mark.parametrize("family", ["semantic", "stage3", "stage4"])
def test_all_of_it_resumes_bit_for_bit(family, tmp_path):
    """Four steps in one go, and two and two."""
    from detectron2.utils.env import seed_all_rng

    from d2_cityscapes.engine.trainer import Trainer

    keep = [*EVERYTHING, "SOLVER.CHECKPOINT_PERIOD", "2"]
    whole = weights(family, keep, tmp_path / "whole", 4)
    folder = tmp_path / "parts"
    file, small = tiny_trainings.settings(family)
    opts = [*small, "SOLVER.MAX_ITER", "4", "INPUT.MIN_INSTANCE_AREA", "8", *keep]
    for end in (2, 4):
        seed_all_rng(1)
        trainer = Trainer(tiny_trainings.config(file, opts, "cpu", folder))
        trainer.resume_or_load(resume=end == 4)
        assert trainer.start_iter == end - 2
        trainer.max_iter = end
        trainer.train()
    found = trainer.model.state_dict()
    assert same({name: value.cpu() for name, value in found.items()}, whole)
