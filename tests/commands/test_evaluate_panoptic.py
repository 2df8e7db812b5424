"""The command: table, results.json, every kind of input, and a user's mistakes as one line."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.labels import CITYSCAPES

TOOL = "tools/evaluate_panoptic.py"


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/evaluate_panoptic.py")


@pytest.fixture
def predictions(cityscapes_tree, tmp_path):
    """Predictions for the 8 images of val: the truth without its groups, moved by a row."""
    folder = tmp_path / "predictions"
    folder.mkdir()
    for path in (cityscapes_tree / "gtFine" / "val").glob("*/*_instanceIds.png"):
        ids = np.roll(np.asarray(Image.open(path)), 1, axis=0)
        ids = np.where((ids >= 24) & (ids <= 33), 0, ids)
        name = path.name.replace("gtFine_instanceIds", "leftImg8bit")
        Image.fromarray(ids.astype(np.uint16)).save(folder / name)
    return folder


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    for word in ("--truth", "--prediction", "--output", "--workers", "--allow-missing", "--split"):
        assert word in out
    for word in ("instance ids", "COCO panoptic", "shards", "csEvalPanopticSemanticLabeling"):
        assert word in out


def test_table_and_results(call, cityscapes_tree, predictions, tmp_path):
    truth, output = cityscapes_tree / "gtFine" / "val", tmp_path / "new" / "results.json"
    code, out, err = call(
        "--truth", truth, "--prediction", predictions, "--output", output, "--workers", 2
    )
    assert code == 0
    assert "8/8" in err, "a progress bar"
    rows, document = read_results(output)
    assert document["seconds"] > 0
    assert document["config_sha256"] is None
    found = {row.metric: row for row in rows}
    assert {(r.task, r.images, r.dataset) for r in rows} == {("panoptic_seg", 8, str(truth))}
    assert 30 < found["PQ"].value < 95
    assert {found["PQ"].protocol, found["PQ_dagger"].protocol} == {"panopticapi", "Seamless"}
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert lines["road"][:4] == [
        f"{found[f'{metric}-road'].value:.1f}" for metric in ("PQ", "SQ", "RQ", "PQ_dagger")
    ]
    for name, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        metrics = [f"{metric}{suffix}" for metric in ("PQ", "SQ", "RQ")]
        assert lines[name][:3] == [f"{found[metric].value:.1f}" for metric in metrics]
    assert out.endswith(f"wrote {output}\n")


def test_shards_as_truth_give_the_same(call, cityscapes_tree, datasets_root, predictions, tmp_path):
    values = []
    for truth in (cityscapes_tree, datasets_root / "cityscapes_shards"):
        output = tmp_path / "results.json"
        arguments = ["--truth", truth, "--split", "val", "--prediction", predictions]
        assert call(*arguments, "--output", output, "--workers", 1)[0] == 0
        rows, _ = read_results(output)
        assert {row.dataset for row in rows} == {f"{truth} val"}
        values.append([row.value for row in rows])
    assert values[0] == values[1]


def test_missing_predictions(call, cityscapes_tree, predictions, tmp_path):
    truth, output = cityscapes_tree / "gtFine" / "val", tmp_path / "results.json"
    missing = sorted(predictions.iterdir())[:2]
    for path in missing:
        path.unlink()
    arguments = ["--truth", truth, "--prediction", predictions, "--output", output]
    code, out, err = call(*arguments)
    assert (code, out) == (1, "")
    assert not output.exists()
    *listed, line = err.splitlines()
    assert listed == [path.name.removesuffix("_leftImg8bit.png") for path in missing]
    assert line.startswith(f"error: {predictions}: no prediction for 2 of 8 images")
    code, out, _ = call(*arguments, "--allow-missing")
    assert code == 0
    assert "2 of them without prediction: all their segments are missed" in out


def test_mistakes_are_one_line(call, cityscapes_tree, predictions, tmp_path):
    truth, output = cityscapes_tree / "gtFine" / "val", tmp_path / "results.json"
    for changed, word in (
        ({"--truth": tmp_path / "gone"}, "gone"),
        ({"--prediction": cityscapes_tree / "leftImg8bit"}, "RGB with 8 bits"),
        ({"--truth": cityscapes_tree}, "--split"),
        ({"--workers": 0}, "workers"),
        ({"--output": tmp_path}, str(tmp_path)),
    ):
        options = {"--truth": truth, "--prediction": predictions, "--output": output} | changed
        code, out, err = call(*(word for pair in options.items() for word in pair))
        assert (code, out) == (1, "")
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert word in errors[0]
        assert "Traceback" not in err
    assert not output.exists()


@pytest.fixture
def coco(predictions, tmp_path):
    """The predictions in COCO panoptic form: the JSON, beside the folder of its PNGs."""
    folder, annotations = tmp_path / "coco", []
    folder.mkdir()
    for path in sorted(predictions.iterdir()):
        ids = np.asarray(Image.open(path)).astype(np.int32)
        ids[(ids > 0) & (CITYSCAPES.train_id_of[ids] == 255)] = 0
        colors = np.stack([ids % 256, ids // 256, 0 * ids], axis=-1).astype(np.uint8)
        Image.fromarray(colors).save(folder / path.name)
        segments = [
            {"id": int(i), "category_id": int(i if i < 1000 else i // 1000)}
            for i in np.unique(ids)
            if i > 0
        ]
        annotations.append(
            {"image_id": path.stem, "file_name": path.name, "segments_info": segments}
        )
    json_path = tmp_path / "coco.json"
    json_path.write_text(json.dumps({"annotations": annotations}))
    return json_path


def test_no_input_is_overwritten(call, cityscapes_tree, datasets_root, predictions, coco, tmp_path):
    """Nor does the output become one of the inputs of the next who scores them."""
    truth = cityscapes_tree / "gtFine" / "val"
    shards = tmp_path / "shards"
    shutil.copytree(datasets_root / "cityscapes_shards", shards)
    (tmp_path / "link.json").symlink_to(coco)
    (tmp_path / "hard.json").hardlink_to(coco)
    picture = next(predictions.iterdir())
    for arguments, output in (
        ((truth, coco), coco),
        ((truth, coco), tmp_path / "link.json"),
        ((truth, coco), tmp_path / "hard.json"),
        ((truth, coco), next((tmp_path / "coco").iterdir())),
        ((truth, predictions), picture),
        ((truth, predictions), predictions / "results.png"),
        ((truth, predictions), predictions / "index.json"),
        ((shards, predictions), shards / "index.json"),
        ((shards, predictions), next(shards.glob("val_*"))),
    ):
        before = _content(tmp_path)
        options = ["--truth", arguments[0], "--prediction", arguments[1], "--output", output]
        options += ["--split", "val"] if arguments[0] == shards else []
        code, out, err = call(*options)
        assert (code, out) == (1, ""), output
        (line,) = err.splitlines()
        assert line.startswith("error: ") and str(output) in line
        assert _content(tmp_path) == before
    output = predictions / "results.json"  # beside maps it is nobody's input
    for _ in range(2):
        assert call("--truth", truth, "--prediction", predictions, "--output", output)[0] == 0


def test_the_output_is_looked_at_first(call, cityscapes_tree, predictions, tmp_path):
    (tmp_path / "file").touch()
    truth = cityscapes_tree / "gtFine" / "val"
    for output in (tmp_path, tmp_path / "file" / "results.json", "/proc/none/results.json"):
        code, out, err = call("--truth", truth, "--prediction", predictions, "--output", output)
        assert (code, out) == (1, "")
        (line,) = err.splitlines()  # no progress bar: nothing was scored
        assert line.startswith("error: ")


def test_scores_are_shown_where_the_disk_refuses_them(
    call, cityscapes_tree, predictions, tmp_path, monkeypatch
):
    def refuse(path, *_, **__):
        raise D2CityscapesError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("d2_cityscapes.evaluation.results.write_results", refuse)
    truth, output = cityscapes_tree / "gtFine" / "val", tmp_path / "results.json"
    code, out, err = call("--truth", truth, "--prediction", predictions, "--output", output)
    assert code == 1
    assert "road" in out and "wrote" not in out
    assert err.splitlines()[-1].startswith("error: ")


def _content(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_in_a_process_of_its_own_without_detectron2(
    repository, cityscapes_tree, predictions, tmp_path
):
    """Also: worker processes end with the command."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(
        "import sys\nsys.modules['detectron2'] = None\n"
    )
    path = os.pathsep.join([str(tmp_path / "blocked"), str(repository)])
    arguments = ["--truth", cityscapes_tree / "gtFine" / "val", "--prediction", predictions]
    arguments += ["--output", tmp_path / "results.json", "--workers", "2"]
    done = subprocess.run(
        [sys.executable, repository / TOOL, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Detectron2" not in done.stderr
    assert json.loads((tmp_path / "results.json").read_text())["results"]
