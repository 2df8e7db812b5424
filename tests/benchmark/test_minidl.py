"""The benchmark of MiniDL: both sides compute the same, and every comparison is made."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec

from d2_cityscapes.benchmark.minidl import (
    MiniDLBenchmark,
    benchmark_minidl,
    direct_context,
    direct_losses,
)
from d2_cityscapes.modeling import MiniDLSemSegHead


def test_both_sides_compute_the_same():
    torch.manual_seed(0)
    strides = {"p2": 4, "p3": 8}
    shapes = {name: ShapeSpec(channels=6, stride=s) for name, s in strides.items()}
    head = MiniDLSemSegHead(shapes, num_classes=19, channels=4, pool_size=(5, 8))
    features = {name: torch.randn(2, 6, 64 // s, 96 // s) for name, s in strides.items()}
    targets = torch.randint(19, (2, 64, 96))
    module, x = head.levels["p2"], features["p2"]
    torch.testing.assert_close(module.context(x), direct_context(module, x))
    torch.testing.assert_close(head(features, targets)[1], direct_losses(head, features, targets))


def test_every_comparison_is_made():
    reported = []
    settings = MiniDLBenchmark(context_size=(80, 90), image_size=(64, 64), gpu_image_size=(64, 128))
    found = benchmark_minidl(settings, report=reported.extend)
    assert reported == found
    assert len(found) == (5 if torch.cuda.is_available() else 3)
    assert all(c.ours > 0 and c.theirs > 0 and c.peer == "direct form" for c in found)
    assert found[0].measure == "MiniDL context branch, 1x256x80x90, one thread, forward"
