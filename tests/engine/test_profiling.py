"""Traces of training steps: which steps, which files, and a training that ends too soon."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import TrainerBase

from d2_cityscapes.engine.profiling import ProfileHook, covered, gpu_intervals


class Multiplying(TrainerBase):
    """Multiplies two matrices in every step; may fail in one."""

    def __init__(self, fails_in: int | None = None) -> None:
        super().__init__()
        self.fails_in = fails_in

    def run_step(self) -> None:
        torch.ones(32, 32) @ torch.ones(32, 32)
        if self.iter == self.fails_in:
            raise RuntimeError("failed")


def run(output: Path, steps: int, length: int, *, start: int = 0, fails_in: int | None = None):
    trainer = Multiplying(fails_in)
    trainer.register_hooks([ProfileHook(output, steps)])
    trainer.train(start, length)


def products(output: Path) -> int:
    """How many matrix products the trace holds."""
    with gzip.open(output / "trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    return sum(event.get("name") == "aten::mm" for event in events)


@pytest.mark.parametrize("start", [0, 100])  # 100: resumed
def test_as_many_steps_as_asked_for_are_recorded(start, tmp_path, log):
    run(tmp_path / "profile", 2, start + 8, start=start)
    assert products(tmp_path / "profile") == 2
    assert {path.name for path in (tmp_path / "profile").iterdir()} == {
        "trace.json.gz",
        "operators.txt",
    }
    table = (tmp_path / "profile" / "operators.txt").read_text()
    assert "aten::mm" in table and "Self CPU" in table
    assert f"profile of 2 steps in {tmp_path / 'profile'}" in log.text


def test_a_training_that_ends_before_leaves_what_there_was(tmp_path, log):
    run(tmp_path, 5, 6)
    assert products(tmp_path) == 3
    assert "profile of 3 steps of the 5 asked for" in log.text


def test_a_training_of_just_enough_steps(tmp_path, log):
    run(tmp_path, 2, 5)
    assert products(tmp_path) == 2
    assert "profile of 2 steps in" in log.text


def test_a_training_that_fails_leaves_what_there_was(tmp_path, log):
    with pytest.raises(RuntimeError, match="failed"):
        run(tmp_path, 5, 20, fails_in=5)
    assert products(tmp_path) == 3  # the third one is of the step that failed
    assert "profile of 2 steps of the 5 asked for" in log.text


def test_a_training_without_a_step_to_record_says_so(tmp_path, log):
    run(tmp_path / "profile", 2, 3)
    assert not (tmp_path / "profile").exists()
    assert "WARNING no profile: it begins after 3 steps" in log.text


def test_training_is_the_same_with_a_profile(tmp_path):
    """The profiler draws no random numbers."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    run(tmp_path, 1, 4)
    assert torch.rand(1) == expected


def test_overlapping_intervals_count_once():
    assert covered([]) == 0
    assert covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert covered([(0, 10), (2, 3), (9, 12)]) == 12


def test_the_gpu_part_of_a_trace(tmp_path):
    events = [
        {"cat": "kernel", "ts": 10.0, "dur": 2.5, "name": "gemm"},
        {"cat": "gpu_memcpy", "ts": 20.0, "dur": 1.0, "name": "HtoD"},
        {"cat": "gpu_user_annotation", "ts": 0.0, "dur": 100.0, "name": "step"},
        {"ph": "M", "name": "process_name"},
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert gpu_intervals(path) == [(10.0, 12.5)]
    assert gpu_intervals(path, ("kernel", "gpu_memcpy")) == [(10.0, 12.5), (20.0, 21.0)]
