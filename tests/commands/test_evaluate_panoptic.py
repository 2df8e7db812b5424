"""The command: table, results.json, every kind of input, and a user's mistakes as one line."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.evaluation.results import read_results

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
