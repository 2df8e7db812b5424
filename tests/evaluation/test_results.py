"""results.json: complete, valid JSON, whole or not there."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import ResultsError, make_rows, read_results, write_results

SCORES = {"AP": (41.5, 8), "APs": (math.nan, 0), "AP-car": (None, 0)}


def write(path: Path, **options) -> dict:
    rows = make_rows("segm", SCORES, protocol="COCO", dataset="val_report", images=250)
    write_results(path, rows, seconds=1.23456, **options)
    return json.loads(path.read_text())


def test_document(tmp_path: Path) -> None:
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(b"weights")
    command = ["train_net.py", "--eval-only", "A B"]
    document = write(tmp_path / "r.json", config="MODEL: x", weights=weights, command=command)
    assert list(document) == [
        "results", "config_sha256", "weights_sha256", "versions", "command", "seconds",
    ]  # fmt: skip
    assert document["results"][0] == {
        "task": "segm",
        "metric": "AP",
        "value": 41.5,
        "protocol": "COCO",
        "dataset": "val_report",
        "images": 250,
        "classes": 8,
    }
    assert [row["value"] for row in document["results"]] == [41.5, None, None]
    assert document["config_sha256"] == hashlib.sha256(b"MODEL: x").hexdigest()
    assert document["weights_sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert {"python", "d2_cityscapes", "torch", "numpy"} <= document["versions"].keys()
    assert document["command"] == "train_net.py --eval-only 'A B'"
    assert document["seconds"] == 1.235


def test_without_config_and_weights(tmp_path: Path) -> None:
    document = write(tmp_path / "new" / "r.json", weights="detectron2://not/on/this/disk.pkl")
    assert document["config_sha256"] is None
    assert document["weights_sha256"] is None
    assert document["command"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["r.json"]


def test_reading_gives_the_rows_back(tmp_path: Path) -> None:
    write(tmp_path / "r.json")
    rows, about = read_results(tmp_path / "r.json")
    assert [(row.metric, row.value) for row in rows] == [
        ("AP", 41.5), ("APs", None), ("AP-car", None),
    ]  # fmt: skip
    assert about["seconds"] == 1.235


@pytest.mark.parametrize("content", ["", "[]", '{"results": [{"task": "segm"}]}', '{"results": 3}'])
def test_another_file_is_one_clear_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(D2CityscapesError, match=r"r\.json: not a results\.json"):
        read_results(path)
    with pytest.raises(D2CityscapesError, match=r"no\.json: cannot be read"):
        read_results(tmp_path / "no.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task", 3),
        ("metric", None),
        ("dataset", ["val"]),
        ("protocol", {}),
        ("value", "41.5"),
        ("value", True),
        ("value", [1]),
        ("value", math.nan),
        ("value", math.inf),
        ("value", 10**400),
        ("images", "250"),
        ("images", None),
        ("images", -1),
        ("images", 2.5),
        ("classes", True),
    ],
)
def test_a_field_of_another_type_is_one_clear_error(
    tmp_path: Path, field: str, value: object
) -> None:
    document = write(tmp_path / "r.json")
    document["results"][1][field] = value
    (tmp_path / "r.json").write_text(json.dumps(document))
    with pytest.raises(ResultsError, match=rf"r\.json: not a results\.json \({field} ") as caught:
        read_results(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_images_without_truth_are_counted(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", [], seconds=1, unscored={"cityscapes_shards_test": 1525})
    rows, about = read_results(tmp_path / "r.json")
    assert (rows, about["unscored_images"]) == ([], {"cityscapes_shards_test": 1525})
