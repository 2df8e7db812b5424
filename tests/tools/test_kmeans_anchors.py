"""The command: help, a run on shards, and a user's mistakes as one line."""

import json
import os
import runpy
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "DATASETS: {TRAIN: [cityscapes_shards_train]}\n"
        "INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 128}\n"
        "MODEL: {ANCHOR_GENERATOR: {KMEANS: {NUM_SIZES: 4, NUM_RATIOS: 2}}}\n"
    )
    return path


@pytest.fixture
def call(repository, monkeypatch, capsys):
    """Run the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["kmeans_anchors.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(str(repository / "tools" / "kmeans_anchors.py"), run_name="__main__")
        return leaving.value.code, *capsys.readouterr()

    return run


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "--config-file" in out
    assert "KMeansAnchorGenerator" in out


def test_writes_anchors_of_the_training_shards(repository, config, datasets, tmp_path):
    output = tmp_path / "anchors.json"
    overrides = ["MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES", "3"]
    arguments = ["--config-file", config, "--output", output, *overrides]
    done = subprocess.run(
        [sys.executable, "tools/kmeans_anchors.py", *arguments],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    assert len(content["sizes"]) == 3
    assert len(content["aspect_ratios"]) == 2
    assert content["num_boxes"] > 3
    assert output.with_suffix(".png").is_file()
    assert f"{content['sizes'][0]:.1f}" in done.stdout
    assert "recall@0.7" in done.stdout


def test_missing_arguments(call):
    code, _, err = call()
    assert code == 2
    assert "--config-file, --output" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "none.yaml"], "none.yaml: no such config file"),
        (["MODEL.ANCHORS", 5], "MODEL.ANCHORS"),
        (["DATASETS.TRAIN", "('nowhere',)"], "no dataset 'nowhere'"),
        (["MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES", 10**6], "cannot form 1000000 clusters"),
    ],
)
def test_mistakes_are_one_line(call, config, datasets, tmp_path, arguments, message):
    output = tmp_path / "anchors.json"
    code, _, err = call("--config-file", config, "--output", output, *arguments)
    assert code == 1
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not output.exists()


def test_missing_shards(call, config, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    code, _, err = call("--config-file", config, "--output", tmp_path / "anchors.json")
    assert code == 1
    assert "prepare_shards.py" in err
