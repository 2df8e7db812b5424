"""The benchmark of fusion, end to end on a small image."""

from __future__ import annotations

import pytest
import torch

from d2_cityscapes.benchmark import fusion
from d2_cityscapes.benchmark.fusion import FusionBenchmark, benchmark_fusion

SETTINGS = FusionBenchmark(size=(128, 256), detections=12, above=(12, 3), rounds=1)


def test_every_comparison_is_made():
    reported = []
    found = benchmark_fusion(SETTINGS, report=reported.extend)
    assert reported == found and len(found) == 10
    assert all(c.ours > 0 and c.theirs > 0 for c in found)
    assert len({c.measure for c in found}) == 10


def test_other_results_are_an_error(monkeypatch):
    def without_the_last(*args, **kwargs):
        panoptic, segments = original(*args, **kwargs)
        return torch.where(panoptic == len(segments), 0, panoptic), segments[:-1]

    original = fusion.fuse_panoptic
    monkeypatch.setattr(fusion, "fuse_panoptic", without_the_last)
    with pytest.raises(RuntimeError, match="other results than those of Detectron2"):
        benchmark_fusion(SETTINGS, report=lambda found: None)
