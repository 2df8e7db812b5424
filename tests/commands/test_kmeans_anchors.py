"""The command: help, a run on shards, and a user's mistakes as one line."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from d2_cityscapes.data import write_shards

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
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/kmeans_anchors.py")


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


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def painted(array_source, tmp_path, monkeypatch):
    """(levels) -> shards whose cars are rectangles: levels is [(size, [height / width, ...]), ...].

    Each image of 256 x 512 pixels shows all ratios of one size, side by side.
    """

    def paint(levels):
        sources = []
        for number, (size, ratios) in enumerate(levels * 4):
            ids = np.full((256, 512), 7, dtype=np.int32)  # road
            left = 0
            for index, ratio in enumerate(ratios):
                width, height = round(size / ratio**0.5), round(size * ratio**0.5)
                ids[:height, left : left + width] = 26_000 + index
                left += width
            sources.append(array_source(f"a_{number:06d}", np.zeros((256, 512, 3), np.uint8), ids))
        output = tmp_path / "painted" / "cityscapes_shards"
        write_shards(sources, output, split="train", partitions=1)
        monkeypatch.setenv("DETECTRON2_DATASETS", str(output.parent))

    return paint


# half of 256 x 512: what is 8 px in the image is 4 px for the network
HALVED = ["INPUT.MIN_SIZE_TRAIN", "(128,)", "INPUT.MAX_SIZE_TRAIN", "256"]
KMEANS = "MODEL.ANCHOR_GENERATOR.KMEANS."


@pytest.mark.parametrize("method", ["separate", "joint", "paper"])
def test_known_boxes_are_recovered_in_network_coordinates(call, config, painted, tmp_path, method):
    painted([(size, [0.25, 1.0, 4.0]) for size in (8, 16, 32, 64, 128)])
    output = tmp_path / "anchors.json"
    code, out, err = call(
        "--config-file", config, "--output", output, *HALVED, f"{KMEANS}METHOD", method,
        f"{KMEANS}NUM_SIZES", 5, f"{KMEANS}NUM_RATIOS", 3,
        "MODEL.RPN.IN_FEATURES", "['p2','p3','p4','p5','p6']",
    )  # fmt: skip
    assert code == 0, err
    content = read(output)
    np.testing.assert_allclose(content["sizes"], [4, 8, 16, 32, 64], rtol=0.05)
    ratios = np.atleast_2d(content["aspect_ratios"])
    np.testing.assert_allclose(ratios, np.broadcast_to([0.25, 1, 4], ratios.shape), rtol=0.05)
    assert content["quality"]["kmeans"]["recall_70"] == 1
    assert "64.0" in out and "0.250 1.000 4.000" in out


def test_ratios_of_their_own_are_recovered_jointly(call, config, painted, tmp_path):
    """No set of two ratios serves these sizes alike."""
    painted([(8, [1.0, 4.0]), (32, [0.25, 1.0]), (128, [0.25, 4.0])])
    output = tmp_path / "anchors.json"
    code, out, err = call(
        "--config-file", config, "--output", output, *HALVED, f"{KMEANS}METHOD", "joint",
        f"{KMEANS}NUM_SIZES", 3, f"{KMEANS}NUM_RATIOS", 2,
        "MODEL.RPN.IN_FEATURES", "['p2','p3','p4']",
    )  # fmt: skip
    assert code == 0, err
    content = read(output)
    np.testing.assert_allclose(content["sizes"], [4, 16, 64], rtol=0.05)
    np.testing.assert_allclose(content["aspect_ratios"], [[1, 4], [0.25, 1], [0.25, 4]], rtol=0.05)
    rows = [line for line in out.splitlines() if line.startswith("height / width")]
    assert len(rows) == 3 and all(row.endswith(" px") for row in rows)
    assert content["quality"]["separate"]["recall_70"] < content["quality"]["kmeans"]["recall_70"]


@pytest.mark.parametrize("method", ["separate", "joint", "paper"])
def test_synthetic_scenes_beat_the_default_anchors(call, config, datasets, tmp_path, method):
    outputs = [tmp_path / "a.json", tmp_path / "b.json"]
    for output in outputs:
        code, _, err = call(
            "--config-file", config, "--output", output, f"{KMEANS}METHOD", method,
            f"{KMEANS}NUM_SIZES", 5, f"{KMEANS}NUM_RATIOS", 3,
            "MODEL.RPN.IN_FEATURES", "['p2','p3','p4','p5','p6']",
        )  # fmt: skip
        assert code == 0, err
    quality = read(outputs[0])["quality"]
    assert quality["kmeans"]["recall_70"] > quality["default"]["recall_70"]
    assert quality["kmeans"]["mean_best_iou"] > quality["default"]["mean_best_iou"]
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


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
        (["MODEL.ANCHOR_GENERATOR.KMEANS.NUM_SIZES", 0], "cannot form 0 clusters"),
        (
            ["MODEL.ANCHOR_GENERATOR.KMEANS.METHOD", "both"],
            "'both': it is one of separate, joint, paper",
        ),
        (["MODEL.ANCHOR_GENERATOR.KMEANS.METHOD", "joint"], "NUM_SIZES 4: the joint method needs"),
        (["INPUT.MIN_INSTANCE_AREA", 10**6], "no boxes in DATASETS.TRAIN cityscapes_shards_train"),
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
    assert "d2c prepare" in err


def test_inputs_and_neighbours_stay(call, config, datasets_root, tmp_path, monkeypatch):
    """The shards, the config and what it begins with; a picture beside a new file of anchors."""
    (tmp_path / "sub.json").write_text("_BASE_: config.yaml\n")
    index = tmp_path / "data" / "cityscapes_shards" / "index.json"
    shutil.copytree(datasets_root, tmp_path / "data")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    (tmp_path / "street.png").write_bytes(b"picture")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for output, word in (
        (index, "index.json: is read here too"),
        (config, "config.yaml: is read here too"),
        (tmp_path / "street.json", "street.png: is there, without"),
    ):
        code, out, err = call("--config-file", tmp_path / "sub.json", "--output", output)
        assert (code, out) == (1, "") and word in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
