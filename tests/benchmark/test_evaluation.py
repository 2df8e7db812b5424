"""The benchmark of scoring, end to end on a small tree."""

from __future__ import annotations

from d2_cityscapes.benchmark.evaluation import EvaluationBenchmark, benchmark_evaluation


def test_every_comparison_is_made(cityscapes_tree):
    reported = []
    settings = EvaluationBenchmark(cityscapes=cityscapes_tree, images=2, rounds=1)
    found = benchmark_evaluation(settings, report=reported.extend)
    assert reported == found and len(found) == 6
    assert all(c.ours > 0 and c.theirs > 0 for c in found)
    assert {c.measure.split(",")[0] for c in found} == {
        "PanopticQuality.update",
        "evaluate_panoptic.py on PNGs",
        "COCO segm AP",
        "Cityscapes AP",
    }
