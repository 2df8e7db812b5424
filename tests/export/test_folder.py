"""An exported folder is whole, compared and described, or not there."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from d2_cityscapes.engine.prediction.loading import load, model_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import make_rows, write_results
from d2_cityscapes.export import folder as folders
from d2_cityscapes.export.check import test_pictures as pictures_of_test
from d2_cityscapes.export.folder import export_model
from d2_cityscapes.export.kinds import ExportError

VAL = ["DATASETS.TEST", "('cityscapes_shards_val',)"]


def test_weights_without_code_in_a_folder_that_loads_in_one_line(make_run, datasets, tmp_path):
    run, output = make_run("quick/instance.yaml", *VAL), tmp_path / "a" / "exported"
    rows = make_rows(
        "segm", {"AP": (12.5, 8)}, protocol="COCO", dataset="cityscapes_shards_val", images=8
    )
    write_results(run / "results.json", rows, seconds=1, weights=run / "model_final.pth")
    lines = export_model(run, output, "safetensors", check=3)
    assert "compared on 3 pictures" in lines
    assert any(line.startswith("cityscapes_shards_val, segm AP: ") for line in lines)
    names = {path.name for path in output.iterdir()}
    assert names == {"README.md", "config.yaml", "model.json", "model.safetensors"}
    picture = pictures_of_test(model_config(run), 1)[0].read()
    own, again = (load(path)(picture)["instances"] for path in (run, output / "model.safetensors"))
    assert len(own) and own.scores.equal(again.scores)
    card, about = (
        (output / "README.md").read_text(),
        json.loads((output / "model.json").read_text()),
    )
    assert "| segm | AP | 12.50 | COCO | cityscapes_shards_val | 8 |" in card
    assert "non-commercial" in card and about["weights_sha256"] in card
    assert [about["classes"][t]["name"] for t in about["things"]][:2] == ["person", "rider"]
    assert str(run) not in (output / "config.yaml").read_text()
    assert ModelCard.load(output / "README.md").data.library_name == "d2_cityscapes"  # of the Hub
    write_results(run / "results.json", rows, seconds=1, weights=run / "config.yaml")
    export_model(run, output, "safetensors", check=1)  # the scores are of other weights
    assert "None recorded" in (output / "README.md").read_text()


def test_for_stock_detectron2(make_run, datasets, tmp_path):
    run, output = make_run("quick/semantic.yaml", *VAL), tmp_path / "exported"
    export_model(run, output, "detectron2", check=2)
    assert {path.name for path in output.iterdir()} == {
        "README.md", "config.yaml", "model.json", "model.pth",
    }  # fmt: skip
    assert f"WEIGHTS: {output / 'model.pth'}" in (output / "config.yaml").read_text()


def test_an_export_that_differs_is_refused_and_an_earlier_one_stays(
    make_run, datasets, tmp_path, monkeypatch
):
    run, output = make_run("quick/semantic.yaml", *VAL), tmp_path / "exported"
    export_model(run, output, "safetensors", check=2)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    true_run = folders.run_weights

    def run_otherwise(*args):
        def see(image):
            found = export(image)
            found["sem_seg"] = found["sem_seg"].copy()
            found["sem_seg"][:1] = 18 - found["sem_seg"][:1]
            return found

        export = true_run(*args)
        return see

    monkeypatch.setattr(folders, "run_weights", run_otherwise)
    for place in (output, tmp_path / "new" / "one"):
        with pytest.raises(ExportError, match=r"differs .* \d+ of 16384 \(\d\d\.\d+ %") as caught:
            export_model(run, place, "safetensors", check=2)
        assert caught.value.details[0] == "compared on 2 pictures"
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "run"]
    monkeypatch.undo()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    export_model(run, output, "detectron2", check=1)
    assert (output / "model.pth").exists() and not (output / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "opts", "kwargs", "message"),
    [
        ("onnx", ["TEST.SLIDING_WINDOW.ENABLED", "True"], {}, "looks at a picture once"),
        ("safetensors", [], {"size": (64, 128)}, "holds weights, of no size"),
        ("onnx", [], {"size": (9, 9)}, "no picture of --size 9 9"),
        ("onnx", ["DATASETS.TEST", "()"], {}, "name pictures to compare on by --pictures"),
    ],
)
def test_what_cannot_be_is_said_at_once(make_run, datasets, tmp_path, kind, opts, kwargs, message):
    run = make_run("quick/semantic.yaml", *VAL)
    with pytest.raises(ExportError, match=message):
        export_model(run, tmp_path / "exported", kind, opts=opts, **kwargs)
    assert not (tmp_path / "exported").exists()


def test_a_folder_of_something_else_and_pictures_of_another_size_are_refused(make_run, tmp_path):
    run = make_run("quick/semantic.yaml", *VAL)
    with pytest.raises(ExportError, match="holds something else than an export"):
        export_model(run, run, "safetensors")
    path = tmp_path / "small.png"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path)
    with pytest.raises(D2CityscapesError, match=r"small.png: \(4, 6\)"):
        export_model(run, tmp_path / "exported", "onnx", size=(64, 128), pictures=[path])
