"""The benchmark of scoring, end to end on a small tree; and without the official tools."""

from __future__ import annotations

import sys

import pytest
import referee
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.benchmark.evaluation import EvaluationBenchmark, benchmark_evaluation
from d2_cityscapes.benchmark.official import OfficialToolsError

MATCHING = "cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling"
PANOPTIC = "cityscapesscripts.evaluation.evalPanopticSemanticLabeling"


@pytest.fixture
def benchmark(cityscapes_tree):
    def run():
        reported = []
        settings = EvaluationBenchmark(cityscapes=cityscapes_tree, images=2, rounds=1)
        found = benchmark_evaluation(settings, report=reported.extend)
        assert reported == found and len(found) == 6
        return found

    yield run
    for catalog in (DatasetCatalog, MetadataCatalog):
        for name in [name for name in catalog if name.startswith("benchmark_evaluation")]:
            catalog.remove(name)


@referee.as_it_is
def test_every_comparison_is_made(benchmark):
    found = benchmark()
    assert all(c.ours > 0 and c.theirs > 0 for c in found)
    assert {c.measure.split(",")[0] for c in found} == {
        "PanopticQuality.update",
        "evaluate_panoptic.py on PNGs",
        "COCO segm AP",
        "Cityscapes AP",
    }


def test_a_peer_that_fails_is_a_row_that_says_so(benchmark, monkeypatch):
    """As where numpy is newer than the official AP."""
    monkeypatch.setitem(sys.modules, MATCHING, None)
    *timed, failed = benchmark()
    assert all(c.ours > 0 and c.theirs > 0 for c in timed)
    assert failed.ours > 0 and failed.ratio is None
    assert MATCHING in failed.theirs and "pip install" in failed.theirs
    assert "\n" not in failed.theirs


def test_without_the_official_tools_it_is_one_line(benchmark, monkeypatch):
    monkeypatch.setitem(sys.modules, PANOPTIC, None)
    with pytest.raises(OfficialToolsError, match=r"cityscapesscripts.*; for their numbers: pip"):
        benchmark()
