"""docs/own_data.md works as it stands: its commands, from labels to scores, on drawn scenes."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

import d2c
from d2_cityscapes.data import ShardReader
from d2_cityscapes.shards.reader import folder_table

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "own_data.md").read_text()
COLORS = {
    "water": (0, 60, 120), "quay": (120, 120, 120), "ship": (200, 30, 30), "crane": (230, 180, 0),
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """The words behind d2c of each command of the page."""
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("d2c ")]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of a ship and a crane on the quay, labelled twice, as the current folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    images, annotations = [], []
    for number in range(10):
        x, y = (int(v) for v in rng.integers((0, 0), (80, 20)))
        boxes = {
            "water": (0, 0, 127, 43), "quay": (0, 44, 127, 63),
            "ship": (x, y, x + 39, y + 19), "crane": (x, 40, x + 7, 59),
        }  # fmt: skip
        picture = Image.new("RGB", (128, 64))
        shapes = []
        for name, (left, top, right, bottom) in boxes.items():
            ImageDraw.Draw(picture).rectangle((left, top, right, bottom), fill=COLORS[name])
            corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
            shapes.append({"label": name, "points": corners, "shape_type": "polygon"})
            outline = [left, top, right + 1, top, right + 1, bottom + 1, left, bottom + 1]
            annotations.append(
                {
                    "id": len(annotations), "image_id": number, "iscrowd": 0,
                    "category_id": [*boxes].index(name), "segmentation": [outline],
                }
            )  # fmt: skip
        file = {"imagePath": f"scene_{number}.jpg", "imageData": None, "shapes": shapes}
        path = tmp_path / "pictures" / file["imagePath"]
        picture.save(path, quality=95)
        path.with_suffix(".json").write_text(
            json.dumps(file | {"imageHeight": 64, "imageWidth": 128})
        )
        images.append({"id": number, "file_name": path.name, "height": 64, "width": 128})
    categories = [{"id": i, "name": name, "isthing": int(i > 1)} for i, name in enumerate(COLORS)]
    objects = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "objects.json").write_text(json.dumps(objects))
    (tmp_path / "classes.yaml").write_text(blocks("yaml")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "data")
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., str]:
    """Run d2c with these words; what it prints."""

    def start(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["d2c"])
        with pytest.raises(SystemExit) as leaving:
            d2c.main(words)
        out, err = capsys.readouterr()
        assert leaving.value.code == 0, err[-2000:]
        return out

    return start


def test_the_page_from_labels_to_scores(folder: Path, run, capsys) -> None:
    named = {}
    for words in commands():
        more = ["SOLVER.MAX_ITER", "2"] * (words[0] == "train")
        more += ["--workers", "1"] * (words[0] in ("prepare", "evaluate"))
        named[" ".join(words)] = run(*words, *more)
    (train,) = [line for line in named if line.startswith("train ")]
    packed = next(out for line, out in named.items() if "--labelme" in line)
    printed = packed.split("d2c ")[-1].replace("\\\n", " ")
    assert " ".join(shlex.split(printed)) == train, "it says itself what the page says"
    assert packed.startswith("train: 8 images in 1 shards") and "\nval: 2 images" in packed

    rows = json.loads((folder / "output/harbour/results.json").read_text())["results"]
    tasks = {row["task"] for row in rows}
    assert {"bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg"} == tasks
    names = [r["metric"][3:] for r in rows if r["metric"].startswith("PQ-")]
    assert names == ["crane", "quay", "ship", "water"]
    scored = json.loads((folder / "scores/results.json").read_text())["results"]
    assert {row["images"] for row in scored} == {2}
    assert "harbour_shards_val" in (folder / "output/harbour/report.html").read_text()
    assert len([*(folder / "predictions").glob("*_instanceIds.png")]) == 10

    # both files say the same
    tables = [folder_table(folder / "data" / f"{name}_shards") for name in ("harbour", "port")]
    readers = [
        ShardReader(folder / "data" / f"{t.name}_shards", split="train", table=t) for t in tables
    ]
    assert [r.file_name for r in readers[0]] == [r.file_name for r in readers[1]]
    for one, other in zip(*readers, strict=True):
        maps = [
            np.array([c.name for c in t.classes])[t.train_id_of[r.instance_ids.numpy()]]
            for t, r in zip(tables, (one, other), strict=True)
        ]
        assert (maps[0] == maps[1]).all()
    assert len(ShardReader(folder / "data/both_shards", split="val", table=tables[1])) == 10

    (snippet,) = blocks("python")
    exec(compile(snippet, "own_data.md", "exec"), {})
    out = capsys.readouterr().out
    assert out.count(".jpg (3, 64, 128) ['crane', 'ship']") == 2


def test_the_table_of_the_page(folder: Path, run) -> None:
    run(
        "prepare", "--labelme", "pictures", "--classes", "classes.yaml",
        "--output", "data/own_shards", "--split", "train", "--workers", "1",
    )  # fmt: skip
    table = folder_table(folder / "data/own_shards")
    assert [(c.name, c.color) for c in table.classes] == [*COLORS.items()]
    assert [c.name for c in table.things] == ["ship", "crane"]
    record = ShardReader(folder / "data/own_shards", split="train", table=table)[0]
    assert record.ids.tolist() == [1000, 2000]


@pytest.mark.slow
def test_it_learns(folder: Path, run) -> None:
    prepare, train, *_ = commands()
    run(*prepare, "--workers", "1")
    run(*train, "SOLVER.MAX_ITER", "30")
    rows = json.loads((folder / "output/harbour/results.json").read_text())["results"]
    (quality,) = [r["value"] for r in rows if r["metric"] == "PQ"]
    assert quality > 20
