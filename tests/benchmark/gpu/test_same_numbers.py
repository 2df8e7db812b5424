"""The numbers of a step on two devices: where they count as the same, and that they are."""

from __future__ import annotations

import math

import pytest

from d2_cityscapes.benchmark.gpu import models
from d2_cityscapes.benchmark.gpu.same_numbers import FP32, compare_steps, same_numbers

EXPECTED = {"loss_a": 1.0, "loss_b": 0.01, "norm of the gradients of x": 2.0}
PANOPTIC = "panoptic, MiniDL (stage 4)"


@pytest.mark.parametrize(
    ("changed", "furthest", "apart"),
    [
        ({}, None, 0.0),
        ({"loss_a": 1.01}, "loss_a", 0.01),
        ({"loss_b": 0.02}, "loss_b", 0.01 / (0.05 * 1.01)),
        ({"norm of the gradients of x": 2.2}, "norm of the gradients of x", 0.1 / 5),
        ({"loss_a": math.nan}, "loss_a", math.inf),
    ],
)
def test_distance(changed, furthest, apart):
    found = compare_steps(EXPECTED | changed, EXPECTED, 0.001)
    assert found.good is (not changed)
    if furthest:
        assert found.values["furthest"] == furthest
        assert found.values["apart"] == pytest.approx(apart) or not found.values["apart"] < apart
        assert compare_steps(EXPECTED | changed, EXPECTED, 0.3).good is (apart < 0.3)


def test_a_number_that_is_missing():
    assert compare_steps({"loss_a": 1.0}, {"loss_a": 1.0, "loss_b": 1.0}, 0.5).good is False


def test_every_family_and_every_option_is_compared(cpu_check, gpu_check_settings):
    names = [name for name, _ in same_numbers(gpu_check_settings, {})]
    assert len(names) == len(set(names)) == 3 * len(models.FAMILIES) + 9
    assert all(name.endswith(FP32) for name in names[: len(models.FAMILIES)])
    assert {name for name, _ in same_numbers(cpu_check, {})} < set(names)


def chosen(check, *wanted):
    return [task for name, task in same_numbers(check, {}) if name in wanted]


@pytest.mark.usefixtures("scenes")
def test_a_gpu_computes_what_the_cpu_does(gpu_check_settings, fake_gpu):
    for task in chosen(gpu_check_settings, f"{PANOPTIC}: {FP32}", f"{PANOPTIC}: waiting as stock"):
        found = task()
        assert found.good and found.values["apart"] == 0, found.text
        assert {"loss_sem_seg", "loss_mask", "norm of the update"} <= found.values["found"].keys()


@pytest.mark.usefixtures("scenes")
def test_a_mistake_is_found(gpu_check_settings, fake_gpu, monkeypatch):
    step = models.Case.step

    def wrong(case, *args):
        found = step(case, *args)
        return found | {"loss_mask": found["loss_mask"] * (1.1 if args[1:] else 1.0)}

    monkeypatch.setattr(models.Case, "step", wrong)
    (task,) = chosen(gpu_check_settings, f"Panoptic FPN: {FP32}")
    found = task()
    assert found.good is False and found.values["furthest"] == "loss_mask"


@pytest.mark.usefixtures("scenes")
def test_bfloat16_on_the_cpu(cpu_check):
    (task,) = chosen(cpu_check, "semantic FPN: bfloat16")
    found = task()
    assert found.good and found.values["apart"] > 0
