"""Panoptic quality as rows and as a table."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.evaluation.panoptic.report import format_panoptic, panoptic_rows


@pytest.fixture
def quality() -> PanopticQuality:
    """Road found with an IoU of 3/4, sky with 1/2 and 2/5, a car of two, a person too many."""
    quality = PanopticQuality()
    true = np.array([[7, 7, 7, 7, 23, 23, 23, 26000, 26000, 26001]])
    pred = np.array([[7, 7, 7, 23, 23, 23, 0, 26005, 26005, 24000]])
    quality.update(pred, true)
    pred, true = np.array([[23, 23, 0, 0, 0]]), np.array([[23, 23, 23, 23, 23]])
    quality.update(pred, true)
    return quality


def test_rows(quality: PanopticQuality) -> None:
    rows = panoptic_rows(quality, dataset="town", images=2)
    assert {(row.task, row.dataset, row.images) for row in rows} == {("panoptic_seg", "town", 2)}
    found = {row.metric: (row.value, row.protocol, row.classes) for row in rows}
    assert len(found) == len(rows) == 9 + 19 + 1
    per_class = quality.compute()["per_class"]
    assert found["PQ"] == (pytest.approx(quality.compute()["PQ"]), "panopticapi", 4)
    assert found["RQ_th"] == (pytest.approx((100 / 1.5 + 0) / 2), "panopticapi", 2)
    assert found["SQ_st"][2] == 2
    assert found["PQ-car"] == (pytest.approx(100 / 1.5), "panopticapi", 1)
    assert found["PQ-road"] == (per_class["road"]["PQ"], "panopticapi", 1)
    assert found["PQ-bus"] == (None, "panopticapi", 0)
    assert found["PQ_dagger"] == (quality.compute()["PQ_dagger"], "Seamless", 4)


def test_more_metrics_of_each_class(quality: PanopticQuality) -> None:
    metrics = ("PQ", "SQ", "RQ", "PQ_dagger")
    rows = panoptic_rows(quality, dataset="town", images=2, per_class=metrics)
    found = {row.metric: (row.value, row.protocol) for row in rows}
    assert len(found) == len(rows) == 10 + 4 * 19
    assert found["SQ-road"] == (75, "panopticapi")
    assert found["PQ_dagger-road"] == (75, "Seamless")
    assert found["PQ_dagger-bus"] == (None, "Seamless")


def test_table(quality: PanopticQuality) -> None:
    text = format_panoptic(quality)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["class", "PQ", "SQ", "RQ", "PQ-dagger", "tp", "fp", "fn"]
    assert ["road", "75.0", "75.0", "100.0", "75.0", "1", "0", "0"] in lines
    # sky: IoU 1/2 and 2/5, neither above one half
    assert ["sky", "0.0", "0.0", "0.0", "45.0", "0", "2", "2"] in lines
    assert ["car", "66.7", "100.0", "66.7", "66.7", "1", "0", "1"] in lines
    assert ["person", "0.0", "0.0", "0.0", "0.0", "0", "1", "0"] in lines
    assert ["bus", "-", "-", "-", "-", "0", "0", "0"] in lines
    assert ["All", "35.4", "43.8", "41.7", "46.7", "2", "3", "3"] in lines
    assert ["Things", "33.3", "50.0", "33.3", "33.3", "1", "1", "1"] in lines
    assert ["Stuff", "37.5", "37.5", "50.0", "60.0", "1", "2", "2"] in lines
    assert "panopticapi" in lines[-1]
    assert "Seamless" in lines[-1]
    table = text.split("\n\n")[0].splitlines()
    assert len({len(line) for line in table}) == 1, "aligned"


def test_table_of_nothing() -> None:
    lines = [line.split() for line in format_panoptic(PanopticQuality()).splitlines()]
    assert ["All", "-", "-", "-", "-", "0", "0", "0"] in lines
