"""Every family of models on the pretended GPU, with every option: as on the CPU, to the bit.

A mistake of device raises there; see `fake_cuda`.
"""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import pytest
import tiny_trainings
import torch
from fake_cuda import FakeCuda
from tiny_trainings import FAMILIES, OPTIONS

from d2_cityscapes.engine import trainer  # noqa: F401  (torch.jit.script reads the true torch)
from d2_cityscapes.modeling.execution.wait_free.where import as_on_gpu

pytestmark = pytest.mark.usefixtures("datasets")

PRECISIONS = ("float32", "float16", "bfloat16")
SWITCHES = tuple(name for name in OPTIONS if name not in PRECISIONS)
# These need what the semantic models have not: batch norms that stay frozen, an RPN.
NOT_FOR = dict.fromkeys(("stage0", "semantic"), ("FOLD_FROZEN_NORM", "WAIT_FREE"))
# Every two options meet in one of them, as does each option with each precision, and with each
# kind of model that it is for.
TABLE = [
    (
        "stage0",
        "float32",
        "AUGMENTED ACCUMULATE_STEPS CHANNELS_LAST EMA_DECAY CLIP_NORM PREFETCH EVALUATION",
    ),
    ("stage0", "float16", "CLIP_VALUE MAX_SKIPPED_STEPS"),
    ("stage0", "bfloat16", "AUGMENTED FUSED ACTIVATION_CHECKPOINTING VAL_LOSS"),
    (
        "stage1",
        "float32",
        "ACTIVATION_CHECKPOINTING CLIP_NORM MAX_SKIPPED_STEPS VAL_LOSS WAIT_FREE",
    ),
    ("stage2", "bfloat16", "FOLD_FROZEN_NORM CLIP_VALUE PREFETCH"),
    (
        "stage3",
        "float16",
        "AUGMENTED ACCUMULATE_STEPS CHANNELS_LAST FUSED FOLD_FROZEN_NORM EMA_DECAY "
        "MAX_SKIPPED_STEPS PREFETCH EVALUATION",
    ),
    ("stage4", "float32", "AUGMENTED ACTIVATION_CHECKPOINTING CLIP_VALUE PREFETCH WAIT_FREE"),
    (
        "stage4",
        "float16",
        "CHANNELS_LAST FOLD_FROZEN_NORM CLIP_NORM MAX_SKIPPED_STEPS VAL_LOSS WAIT_FREE EVALUATION",
    ),
    ("stage4", "bfloat16", "ACCUMULATE_STEPS FUSED EMA_DECAY CLIP_NORM WAIT_FREE"),
    (
        "semantic",
        "float32",
        "ACCUMULATE_STEPS CHANNELS_LAST FUSED ACTIVATION_CHECKPOINTING EMA_DECAY CLIP_VALUE "
        "PREFETCH VAL_LOSS EVALUATION",
    ),
    ("semantic", "float16", "AUGMENTED ACTIVATION_CHECKPOINTING CLIP_NORM"),
    ("semantic", "bfloat16", "CHANNELS_LAST MAX_SKIPPED_STEPS EVALUATION"),
    ("stock", "float32", "FOLD_FROZEN_NORM ACTIVATION_CHECKPOINTING"),
]


def kind(family: str) -> str:
    """Stages 1 to 3 are one model; they differ in what is frozen, anchors and data."""
    return "rcnn" if family in ("stage1", "stage2", "stage3", "stock") else family


def test_every_two_options_meet_in_the_table():
    met = set()
    for family, precision, options in TABLE:
        names = options.split()
        met |= set(map(frozenset, itertools.combinations([precision, kind(family), *names], 2)))
    for pair in itertools.combinations(SWITCHES, 2):
        assert frozenset(pair) in met or pair == ("CLIP_NORM", "CLIP_VALUE"), pair
    for option, precision in itertools.product(SWITCHES, PRECISIONS):
        assert frozenset((option, precision)) in met, (option, precision)
    for family in FAMILIES:
        for option in (*SWITCHES, *PRECISIONS):
            if option not in NOT_FOR.get(family, ()):
                assert frozenset((option, kind(family))) in met, (option, family)


def run(family: str, options: list[str], device: str, folder: Path) -> tiny_trainings.Run:
    file, opts = tiny_trainings.settings(family, options)
    return tiny_trainings.train(tiny_trainings.config(file, opts, device, folder))


def is_that_of_the_cpu(family: str, options: list[str], folder: Path) -> None:
    half = "float16" in options or "bfloat16" in options
    with as_on_gpu():
        # CPU kernels round sums of products in half precision, and have other lists for autocast
        with FakeCuda() if half else contextlib.nullcontext():
            on_cpu = run(family, options, "cpu", folder / "cpu")
        with FakeCuda():
            on_gpu = run(family, options, "cuda", folder / "gpu")
    assert set(on_gpu.scalars) == set(on_cpu.scalars)
    for name, values in on_cpu.scalars.items():
        assert on_gpu.scalars[name] == pytest.approx(values, rel=0, abs=0, nan_ok=True), name
    for name, tensor in on_cpu.weights.items():
        assert on_gpu.weights[name].equal(tensor), name
    assert on_gpu.rows == on_cpu.rows and on_gpu.files == on_cpu.files
    if "EVALUATION" in options:
        assert on_cpu.rows and any(name.endswith(".png") for name in on_cpu.files)
    total = on_cpu.scalars["total_loss"]
    assert len(total) == 2 and torch.tensor(total).isfinite().all()


@pytest.mark.parametrize(
    ("family", "precision", "options"), TABLE, ids=[f"{row[0]}-{row[1]}" for row in TABLE]
)
def test_a_training_is_that_of_the_cpu(family, precision, options, tmp_path):
    is_that_of_the_cpu(family, [precision, *options.split()], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", SWITCHES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_option_with_each_family_and_precision(family, precision, option, tmp_path):
    if option in NOT_FOR.get(family, ()):
        pytest.skip(f"{family} has nothing for {option}")
    is_that_of_the_cpu(family, [precision, option], tmp_path)
