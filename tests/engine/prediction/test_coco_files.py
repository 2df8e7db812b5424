"""COCO's files: what pycocotools and our own evaluation read of them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from d2_cityscapes.engine.prediction import Options, PictureError, Predictor, predict
from d2_cityscapes.engine.setup import ConfigError
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.files import find_panoptic_files
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_output
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.png import write_picture


@pytest.fixture
def folder(scene: np.ndarray, tmp_path: Path) -> Path:
    """Two pictures."""
    for number, name in enumerate(("a.png", "town/b.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(tmp_path / "in" / name, np.roll(scene, 30 * number, axis=1))
    return tmp_path / "in"


def results(truth: Path, output: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(truth).loadRes(str(output / "coco_instances_results.json"))


def test_results_are_those_of_the_model(instance_cfg, folder, scene, tmp_path) -> None:
    output = tmp_path / "out"
    for _ in range(2):  # what is ours is written anew
        predict(instance_cfg, [folder], output, Options(formats=["coco"]))
    found = results(output / "coco_images.json", output)
    assert {x["file_name"]: x["id"] for x in found.dataset["images"]} == {
        "a.png": 1,
        "town/b.png": 2,
    }
    assert [c["name"] for c in found.dataset["categories"]] == [c.name for c in CITYSCAPES.things]
    expected = Predictor(instance_cfg)(scene)["instances"]
    rows = found.loadAnns(found.getAnnIds(imgIds=[1]))
    assert len(rows) == len(expected) > 0
    for n, row in enumerate(rows):
        assert row["category_id"] == int(expected.pred_classes[n]) + 1
        assert row["score"] == pytest.approx(float(expected.scores[n]), abs=1e-5)
        x0, y0, x1, y1 = expected.pred_boxes.tensor[n].tolist()
        assert row["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)
        mask = mask_api.decode(row["segmentation"]).astype(bool)
        assert (mask == expected.pred_masks[n].numpy()).all()
    assert not list(output.rglob("*.jpg"))


def test_ids_of_a_truth(instance_cfg, folder, tmp_path) -> None:
    truth = {
        "images": [
            {"id": 70, "file_name": "town/b.jpg", "height": 64, "width": 128},
            {"id": 80, "file_name": "val/a.jpg", "height": 64, "width": 128},
        ],
        "categories": [
            {"id": 5, "name": "car"},
            {"id": 6, "name": "dog"},
            {"id": 7, "name": "person"},
        ],
        "annotations": [],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    options = Options(formats=["coco"], coco_truth=path)
    done = predict(instance_cfg, [folder], tmp_path / "out", options)
    found = results(path, tmp_path / "out")
    rows = found.loadAnns(found.getAnnIds())
    assert {row["image_id"] for row in rows} <= {70, 80}
    assert {row["category_id"] for row in rows} <= {5, 7}
    every = json.loads((tmp_path / "out" / "coco_images.json").read_text())
    assert [x["id"] for x in every["images"]] == [80, 70]
    assert "detections of classes that" in done.notes[0]


def test_a_truth_that_does_not_fit_is_one_line(instance_cfg, cfg, folder, tmp_path) -> None:
    path, out = tmp_path / "truth.json", tmp_path / "out"
    options = Options(formats=["coco"], coco_truth=path)
    images = [{"id": 1, "file_name": "a.png"}]
    for content, message in (
        ({"images": images, "categories": [{"id": 1, "name": "dog"}]}, "has no category of person"),
        ({"images": images, "categories": [{"id": 1, "name": "car"}]}, "has no image town/b"),
        ([], "not a COCO JSON of annotations"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(D2CityscapesError, match=message):
            predict(instance_cfg, [folder], out, options)
    with pytest.raises(PictureError, match="--coco-truth goes with --format coco"):
        predict(instance_cfg, [folder], out, Options(coco_truth=path))
    for name, what in (("coco", "instances"), ("panoptic", "panoptics")):
        with pytest.raises(ConfigError, match=f"--format {name}: .* predicts no {what}"):
            predict(cfg, [folder], out, Options(formats=[name]))
    assert not out.exists()


def test_files_of_others_stay(instance_cfg, folder, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("coco_instances_results.json", "coco_images.json"):
        (tmp_path / "out" / name).write_text("[]")
        with pytest.raises(PictureError, match=rf"{name} is not of this command"):
            predict(instance_cfg, [folder], tmp_path / "out", Options(formats=["coco"]))
        assert (tmp_path / "out" / name).read_text() == "[]"
        (tmp_path / "out" / name).unlink()


def test_panoptic_files_are_read_by_the_evaluation(panoptic_cfg, folder, scene, tmp_path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        predict(panoptic_cfg, [folder], out, Options(formats=["panoptic"]))
    maps = find_panoptic_files(out / "panoptic.json", truth=False).maps
    assert sorted(maps) == ["a", "b"]
    expected = ids_of_output(Predictor(panoptic_cfg)(scene))
    assert (maps["a"].read() == expected).all() and len(np.unique(expected)) > 2
    (out / "panoptic.json").write_text("{}")
    with pytest.raises(PictureError, match=r"panoptic\.json is not of this command"):
        predict(panoptic_cfg, [folder], out, Options(formats=["panoptic"]))
