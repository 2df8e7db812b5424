"""Mean and spread over folds, worked by hand; their files and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultRow
from d2_cityscapes.report.fold_table import (
    FoldTable,
    make_fold_table,
    read_fold_table,
    write_fold_table,
)
from d2_cityscapes.report.run import write_report

RECORD = {"folds": 3, "dataset": "town", "images": [9, 8, 7]}


def _row(metric: str, value: float | None, dataset: str = "town", images: int = 9) -> ResultRow:
    return ResultRow("segm", metric, value, "COCO", dataset, images, 8)


@pytest.fixture
def table() -> FoldTable:
    """AP 10, 20, 60 and the class bus, which one fold does not have."""
    values = ((10.0, 5.0), (20.0, None), (60.0, 8.0))
    folds = [
        {
            "stage1": [_row("AP", ap / 10)],
            "stage2": [_row("AP", ap), _row("AP-bus", bus), _row("AP-train", None)],
        }
        for ap, bus in values
    ]
    return make_fold_table("town", (9, 8, 7), folds)


def test_mean_and_spread_by_hand(table: FoldTable) -> None:
    _, ap, bus, train = table.rows
    assert (ap.stage, ap.metric, ap.values) == ("stage2", "AP", (10.0, 20.0, 60.0))
    assert ap.mean == 30 and ap.sd == pytest.approx(26.4575131)  # sqrt((400 + 100 + 900) / 2)
    assert bus.known == [5.0, 8.0] and bus.mean == 6.5 and bus.sd == pytest.approx(2.1213203)
    assert train.mean is None and train.sd is None


def test_one_value_has_no_spread() -> None:
    table = make_fold_table("town", (1, 1), [{"s": [_row("AP", 3.0)]}, {"s": [_row("AP", None)]}])
    assert (table.rows[0].mean, table.rows[0].sd) == (3.0, None)


def test_the_text_is_of_the_last_stage_without_classes(table: FoldTable) -> None:
    lines = table.text().splitlines()
    assert lines[0] == "town: 3 folds, stage2" and "9 + 8 + 7 pictures" in lines[1]
    assert lines[2].split() == [
        "task",
        "protocol",
        "metric",
        "mean",
        "sd",
        "n",
        "fold",
        "1",
        "fold",
        "2",
        "fold",
        "3",
    ]
    assert [line.split() for line in lines[4:]] == [
        ["segm", "COCO", "AP", "30.00", "26.46", "3", "10.00", "20.00", "60.00"]
    ]


def test_files_have_every_metric_of_every_stage(table: FoldTable, tmp_path: Path) -> None:
    write_fold_table(table, RECORD, tmp_path / "folds.json")
    text = (tmp_path / "folds.md").read_text()
    assert "| segm | COCO | AP-bus | 6.50 | 2.12 | 2 | 5.00 | - | 8.00 |" in text
    assert "## stage1" in text and "| segm | COCO | AP | 3.00 |" in text
    found = json.loads((tmp_path / "folds.json").read_text())
    assert found["folds"] == 3
    rows = {(row["stage"], row["metric"]): row for row in found["results"]}
    assert rows["stage2", "AP"]["mean"] == 30 and rows["stage2", "AP-bus"]["n"] == 2
    assert rows["stage2", "AP-train"]["mean"] is None
    assert read_fold_table(tmp_path / "folds.json") == table


def test_other_data_are_named() -> None:
    stages = [{"stage0": [_row("AP", v, "vistas"), _row("AP", v + 1)]} for v in (1.0, 2.0)]
    table = make_fold_table("town", (1, 1), stages)
    assert [row.mean for row in table.rows] == [1.5, 2.5]
    assert [line[0] for line in table.cells("stage0", by_class=False)] == [
        "segm on vistas",
        "segm",
    ]


def test_the_page(table: FoldTable, write_run: Callable, tmp_path: Path) -> None:
    write_fold_table(table, RECORD, tmp_path / "folds.json")
    for k in (1, 2):
        write_run(tmp_path / f"fold{k}" / "stage2")
    text = write_report(tmp_path).read_text()
    assert "<b>30.00 ± 26.46</b>segm AP" in text and "3 folds" in text
    assert "stage2, by class" in text and "AP-bus" in text and "stage1" in text
    assert "fold2, val_report: town_&lt;1&gt;" in text and "Training losses" in text


def test_the_page_of_folds_that_are_not_done(tmp_path: Path) -> None:
    (tmp_path / "folds.json").write_text(json.dumps(RECORD))
    assert "Not all folds are done" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"dataset": "a", "images": [1], "results": [{}]}', '{"images": 3}'],
)
def test_a_damaged_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(D2CityscapesError, match=r"folds\.json: not the table of a run of folds"):
        read_fold_table(tmp_path / "folds.json")
