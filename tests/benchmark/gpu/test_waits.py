"""Host waits are counted by the line that asks for them."""

from __future__ import annotations

import pytest
import torch

from d2_cityscapes.benchmark.gpu.waits import counted_waits, waits


def test_waits_are_counted(fake_gpu):
    x = torch.ones(3, device="cuda")
    with counted_waits() as lines:
        x.sum().item()
        x.nonzero()
        torch.cuda.synchronize()  # asked for by nobody but us
    x.sum().item()
    assert dict(lines) == {"elsewhere": 2}


@pytest.mark.usefixtures("scenes")
def test_a_step_that_waits_less(gpu_check_settings, fake_gpu):
    tasks = dict(waits(gpu_check_settings, {}))
    family = "Mask R-CNN, k-means anchors (stage 3)"
    fast, plain = (tasks[f"{family}: bfloat16, {kind}"]() for kind in ("fast", "waiting as stock"))
    assert fast.values["waits"] == 3 < plain.values["waits"]  # as docs/benchmarks.md says
    assert plain.values["waits"] == sum(plain.values["lines"].values())
    assert any(line.startswith("detectron2/modeling/") for line in plain.values["lines"])
    assert plain.values["peak_gib"] > 0 and plain.values["kernels"] is None


def test_the_cpu_has_none(cpu_check):
    assert list(waits(cpu_check, {})) == []
