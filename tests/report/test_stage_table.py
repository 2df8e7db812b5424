"""The stages side by side: the right numbers under the right heads, in text, Markdown and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from d2_cityscapes.evaluation.instances.coco import BOX_SIZE_PROTOCOL, PROTOCOL, coco_scores
from d2_cityscapes.evaluation.results import ResultRow, make_rows
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.report.stage_table import make_stage_tables, write_stage_tables

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100")


def _rows(
    first: float, *, task: str = "bbox", dataset: str = "val", images: int = 9
) -> list[ResultRow]:
    """All metrics of a task, with the values first, first + 1, ... and, by class, 10 more."""
    names = [f"AP-{c.name}" for c in CITYSCAPES.things]
    values = {m: (first + i, 8) for i, m in enumerate(METRICS)}
    values |= {n: (first + 10 + i, 1) for i, n in enumerate(names)}
    values |= {"APs": (values["APs"][0], 6), "AP-train": (None, 0), "APs_mask": (99.0, 6)}
    by_box = {"APs", "APm", "APl"}
    rows = []
    for protocol, own in ((PROTOCOL, values.keys() - by_box), (BOX_SIZE_PROTOCOL, by_box)):
        scores = {m: values[m] for m in values if m in own}
        rows += make_rows(task, scores, protocol=protocol, dataset=dataset, images=images)
    return rows


def _semantic() -> list[ResultRow]:
    return make_rows(
        "sem_seg", {"mIoU": (50.0, 19)}, protocol="Cityscapes", dataset="val", images=9
    )


def test_a_line_for_each_stage_and_one_for_each_class() -> None:
    stages = {"stage0": _semantic(), "stage1": _rows(10.0), "stage3": _rows(20.5)}
    table, by_class = make_stage_tables(stages)
    assert table.head == ("stage", "AP", "AP50", "AP75", "AP_S", "AP_M", "AP_L", "AR@100")
    assert table.lines == {
        "stage1": (10.0, 11.0, 12.0, 13.0, 14.0, 15.0, 16.0),
        "stage3": (20.5, 21.5, 22.5, 23.5, 24.5, 25.5, 26.5),
    }
    assert table.protocols == (PROTOCOL,) * 3 + (BOX_SIZE_PROTOCOL,) * 3 + (PROTOCOL,)
    assert by_class.head == ("class", "stage1", "stage3")
    assert list(by_class.lines) == [c.name for c in CITYSCAPES.things]
    assert by_class.lines["person"] == (20.0, 30.5)
    assert by_class.lines["train"] == (None, None)


def test_the_caption_says_what_was_scored_and_how() -> None:
    (note,) = make_stage_tables({"stage1": _rows(10.0)})[0].notes
    for part in ("val, 9 images", "8 classes (AP_S 6)", "protocol COCO.", BOX_SIZE_PROTOCOL):
        assert part in note


def test_tasks_datasets_and_image_counts_have_tables_of_their_own() -> None:
    stages = {
        "stage1": [*_rows(10.0), *_rows(30.0, task="segm")],
        "stage2": [*_rows(20.0), *_rows(40.0, dataset="other"), *_rows(50.0, images=5)],
    }
    tables = [t for t in make_stage_tables(stages) if t.head[0] == "stage"]
    found = {(t.task, t.dataset, t.images): {n: v[0] for n, v in t.lines.items()} for t in tables}
    assert found == {
        ("bbox", "val", 9): {"stage1": 10.0, "stage2": 20.0},
        ("bbox", "other", 9): {"stage2": 40.0},
        ("bbox", "val", 5): {"stage2": 50.0},
        ("segm", "val", 9): {"stage1": 30.0},
    }


def test_every_column_is_one_that_the_evaluators_write() -> None:
    for task in ("bbox", "segm"):
        rows = [
            row
            for protocol, scores in coco_scores({}, task, CITYSCAPES).items()
            for row in make_rows(
                task,
                {metric: (1.0, classes) for metric, (_, classes) in scores.items()},
                protocol=protocol,
                dataset="val",
                images=0,
            )
        ]
        table, by_class = make_stage_tables({"stage1": rows})
        assert table.lines == {"stage1": (1.0,) * 7}
        assert all(values == (1.0,) for values in by_class.lines.values())


def test_what_was_published_is_a_note_and_only_beside_its_own_protocol() -> None:
    dataset = "cityscapes_shards_val_report"
    table = make_stage_tables({"stage1": _rows(10.0, dataset=dataset, images=250)})[0]
    assert "stage3 29.78 / 52.90 / 29.21 / 9.50 / 23.52 / 50.33 / 40.20" in table.notes[-1]
    assert list(table.lines) == ["stage1"]
    for other in (
        _rows(10.0, dataset=dataset, images=4),
        _rows(10.0, images=250),
        _rows(10.0, task="segm", dataset=dataset, images=250),
    ):
        assert "published" not in " ".join(make_stage_tables({"stage1": other})[0].notes)


def test_the_text_is_aligned() -> None:
    table, by_class = make_stage_tables({"stage1": _rows(3.0), "stage2": _rows(95.25)})
    *_, head, _, first, second = table.text().splitlines()
    assert head.split() == list(table.head)
    assert first.split()[:2] == ["stage1", "3.00"] and second.split()[:2] == ["stage2", "95.25"]
    assert len(head) == len(first) == len(second)
    assert re.search(r"^train +-       -$", by_class.text(), re.MULTILINE)


def test_the_files(tmp_path: Path) -> None:
    stages = {"stage1": _rows(10.0), "stage2": _rows(20.0)}
    tables = write_stage_tables(stages, tmp_path / "table5")
    assert tables == make_stage_tables(stages)
    first, second = json.loads((tmp_path / "table5.json").read_text())["tables"]
    assert first["lines"][1]["stage"] == "stage2" and first["lines"][1]["AP_L"] == 25.0
    assert first["protocols"]["AP_L"] == BOX_SIZE_PROTOCOL
    assert (first["task"], first["dataset"], first["images"]) == ("bbox", "val", 9)
    train = next(line for line in second["lines"] if line["class"] == "train")
    assert train["stage1"] is None
    lines = [x for x in (tmp_path / "table5.md").read_text().splitlines() if x.startswith("|")]
    assert lines[0] == "| stage | AP | AP50 | AP75 | AP_S | AP_M | AP_L | AR@100 |"
    assert lines[2] == "| stage1 | 10.00 | 11.00 | 12.00 | 13.00 | 14.00 | 15.00 | 16.00 |"
    assert {line.count("|") for line in lines[:4]} == {9}


@pytest.mark.parametrize("stages", [{}, {"stage0": _semantic()}])
def test_without_objects_no_file_is_left(stages: dict, tmp_path: Path) -> None:
    write_stage_tables({"stage1": _rows(10.0)}, tmp_path / "table5")
    assert write_stage_tables(stages, tmp_path / "table5") == []
    assert not list(tmp_path.iterdir())
