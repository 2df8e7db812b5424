"""prepare with classes of one's own: arguments, a folder that keeps its classes, and mistakes."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.data import ShardReader
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.reader import folder_table

SHIP = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]]}


@pytest.fixture
def pack(call, tmp_path: Path):
    """Run the command on tmp_path's files; exit code, stdout, stderr."""
    return partial(call, "datasets/prepare_shards.py", "--workers", 1)


@pytest.fixture
def coco(tmp_path: Path) -> list:
    """Options for a JSON of two pictures and two classes."""
    images = []
    for number in (1, 2):
        pixels = np.full((6, 8 + 2 * number, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        width = 8 + 2 * number
        images.append({"id": number, "file_name": f"{number}.png", "height": 6, "width": width})
    document = {
        "images": images, "annotations": [SHIP],
        "categories": [{"id": 7, "name": "ship"}, {"id": 9, "name": "quay"}],
    }  # fmt: skip
    (tmp_path / "objects.json").write_text(json.dumps(document))
    return ["--coco-json", tmp_path / "objects.json", "--images", tmp_path]


def change(options: list, **changes) -> list:
    """The options for a copy of the JSON with changes."""
    path = options[1].with_name("other.json")
    path.write_text(json.dumps(json.loads(options[1].read_text()) | changes))
    return ["--coco-json", path, *options[2:]]


def test_it_ends_with_the_lines_that_train(pack, coco, tmp_path: Path) -> None:
    output = tmp_path / "data" / "pier_shards"
    code, out, err = pack(*coco, "--output", output, "--val-share", 0.5, "--verify")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("train: 1 images in 1 shards") and lines[1].startswith("val: 1 im")
    assert lines[3].startswith("classes: 2 things (ship, quay); names and colors are in ")
    assert f"  export DETECTRON2_DATASETS={tmp_path / 'data'}" in lines
    assert "--config-file quick/instance.yaml" in out and "SEM_SEG_HEAD" not in out
    assert "MODEL.ROI_HEADS.NUM_CLASSES 2 TEST" in out
    table = folder_table(output)
    assert table.name == "pier" and [c.label_id for c in table.classes] == [7, 9]
    sizes = [ShardReader(output, split=s, table=table).image_size(0) for s in ("train", "val")]
    assert sorted(sizes) == [(6, 10), (6, 12)]

    again = pack(*coco, "--output", output, "--val-share", 0.5)
    assert again[0] == 0 and again[1] == out, "nothing is packed twice"


@pytest.mark.parametrize(
    ("stuff", "kind"),
    [(["quay"], "panoptics; quick/panoptic.yaml"), (["ship", "quay"], "semantics; quick/semantic")],
)
def test_the_config_is_that_of_the_classes(pack, coco, tmp_path: Path, stuff, kind: str) -> None:
    code, out, err = pack(*coco, "--output", tmp_path / "a_shards", "--stuff", *stuff)
    assert code == 0, err
    assert kind in out and "MODEL.SEM_SEG_HEAD.NUM_CLASSES 2" in out
    assert ("ROI_HEADS" in out) == (len(stuff) == 1)


def test_a_folder_keeps_its_classes(pack, coco, tmp_path: Path) -> None:
    output = tmp_path / "a_shards"
    code, out, err = pack(*coco, "--output", output, "--split", "train", "--stuff", "quay")
    assert code == 0 and 'DATASETS.TEST "()"' in out, err
    table = folder_table(output)
    # other ids, another order, a class less: names count
    fewer = change(coco, categories=[{"id": 1, "name": "quay"}, {"id": 7, "name": "ship"}])
    code, out, err = pack(*fewer, "--output", output, "--split", "val", "--stuff", "quay")
    assert code == 0 and "a_shards_val" in out, err
    assert folder_table(output) == table
    found = ShardReader(output, split="val", table=table)
    assert found.table(0).ids.tolist() == [7000] or found.table(1).ids.tolist() == [7000]

    other = change(coco, categories=[{"id": 7, "name": "shop"}])
    code, _, err = pack(*other, "--output", output, "--split", "test")
    assert code == 1 and err.count("\n") == 1
    assert "labels that the table a does not have: 'shop' (1 objects); nearest: ship" in err
    (tmp_path / "classes.yaml").write_text("classes: [{name: ship}, {name: quay}]")
    classes = ["--classes", tmp_path / "classes.yaml"]
    code, _, err = pack(*coco, "--output", output, "--split", "test", *classes)
    assert code == 1 and "holds shards of the label table a, not classes; name another" in err
    code, _, err = pack(*coco, "--output", output, "--split", "test", "--stuff", "ship")
    assert code == 1 and "ship of --stuff is no stuff in the classes of this folder" in err
    (tmp_path / "classes.yaml").write_text("name: a\nclasses: [{name: ship}, {name: quay}]")
    code, _, err = pack(*coco, "--output", output, "--split", "test", *classes)
    assert code == 1 and "holds shards of the label table a, with other classes than those" in err


def test_a_background_is_a_class_of_the_folder(pack, coco, tmp_path: Path) -> None:
    output = tmp_path / "a_shards"
    for split in ("train", "val"):
        options = ["--output", output, "--split", split, "--background", "rest"]
        code, out, err = pack(*coco, *options)
        assert code == 0, err
        assert "2 things (ship, quay), 1 stuff (rest)" in out and "panoptic" in out
    code, _, err = pack(*coco, "--output", output, "--split", "test", "--background", "sea")
    assert code == 1 and "the background 'sea' is no class of stuff of the table a" in err


def test_built_in_classes_by_name(pack, coco, tmp_path: Path) -> None:
    streets = change(coco, categories=[{"id": 7, "name": "car"}])
    output = tmp_path / "town_shards"
    code, out, err = pack(*streets, "--output", output, "--classes", "cityscapes")
    assert code == 0, err
    assert folder_table(output) is CITYSCAPES and not (output / "classes.yaml").exists()
    assert "NUM_CLASSES 8 MODEL.SEM_SEG_HEAD.NUM_CLASSES 19" in out


def test_all_problems_are_listed_and_nothing_is_written(pack, coco, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    bad = change(coco, annotations=[SHIP | {"image_id": 2, "segmentation": [[0, 0, 1e9, 1, 1, 1]]}])
    code, _, err = pack(*bad, "--output", tmp_path / "a_shards")
    assert code == 1 and "2 problems: " in err and "1.png: " in err
    assert "other.json: image 2.png: a polygon has points far outside of the image" in err
    assert not (tmp_path / "a_shards").exists()


def test_labelme_with_workers(pack, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(6):
        shape = {"label": "ship", "points": [[0, 0], [4, 4]], "shape_type": "rectangle"}
        if number == 0:
            shape["shape_type"] = "line"
        file = {"imagePath": f"{number}.jpg", "shapes": [shape]}
        (tmp_path / "in" / f"{number}.json").write_text(json.dumps(file))
        Image.new("RGB", (12, 8)).save(tmp_path / "in" / f"{number}.jpg")
    options = ["--labelme", tmp_path / "in", "--output", tmp_path / "a_shards", "--limit", 4]
    code, out, err = pack(*options, "--workers", 2)
    assert code == 0, err
    assert out.startswith("train: 4 images") and "reading: 100%" in err
    shutil.rmtree(tmp_path / "a_shards")
    (tmp_path / "in" / "9.json").write_text("{")
    code, _, err = pack(*options, "--workers", 2)
    assert code == 1 and err.splitlines()[-1].startswith("error: 1 problem: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coco-json", "a.json"], "--coco-json needs --images DIR"),
        (["--labelme", "in", "--images", "in"], "--images is for --coco-json"),
        (["--labelme", "in", "--boxes"], "--boxes is for --coco-json"),
        (["--labelme", "in", "--classes", "x", "--stuff", "y"], "--stuff is for classes of the fi"),
        (["--labelme", "in", "--split", "train", "val"], "--split takes one name here"),
        (["--labelme", "in", "--split", "../x"], "--split takes one name here"),
        (["--labelme", "in", "--split", "train", "--val-share", "0.1"], "do not go together"),
        (["--labelme", "in", "--output", "out"], "--output out: call the folder NAME_shards"),
        (["--labelme", "."], "--output a_shards: lies in the folder of --labelme"),
        (["--cityscapes", "in", "--stuff", "road"], "--stuff is for --coco-json and --labelme"),
        (["--vistas", "in", "--background", "x"], "--background is for --coco-json and --labelme"),
        (["--idd", "in", "--val-share", "0.1"], "--val-share is for --coco-json and --labelme"),
        (["--labelme", "in", "--cities", "bochum"], "--cities is for --cityscapes"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_go_together(pack, options, message: str) -> None:
    code, _, err = pack("--output", "a_shards", *options)
    assert code == 2 and message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labelme", "nowhere"], "nowhere: no *.json; expected labelme's files"),
        (["--coco-json", "nowhere.json", "--images", "."], "nowhere.json: missing"),
        (["--labelme", "in", "--classes", "no.yaml"], "no.yaml: no such file, and none of the"),
    ],
)  # fmt: skip
def test_files_that_are_not_there(pack, tmp_path: Path, options, message: str) -> None:
    code, _, err = pack("--output", tmp_path / "a_shards", *options)
    assert code == 1 and message in err and "Traceback" not in err
