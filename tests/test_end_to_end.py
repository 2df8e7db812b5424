"""The commands, as a user types them: PNG to shards to anchors to 20 steps to report."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = [
    "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128",
    "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128",
    "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def command(repository):
    def call(line: str, *more: str | Path, **environment: str | Path):
        tool, *arguments = line.split()
        full = [sys.executable, "-W", "ignore", repository / tool, *arguments, *more]
        env = os.environ | {key: str(value) for key, value in environment.items()}
        return subprocess.run(
            [str(part) for part in full], capture_output=True, text=True, timeout=600, env=env,
            cwd=repository,
        )  # fmt: skip

    return call


def _succeeds(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def _fails_in_one_line(done: subprocess.CompletedProcess) -> str:
    assert done.returncode in (1, 2), done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_the_road_from_png_to_report(command, tmp_path):
    png, data, run = tmp_path / "png", tmp_path / "data", tmp_path / "run"
    shards, anchors = data / "cityscapes_shards", tmp_path / "anchors.json"
    _succeeds(
        command(
            "datasets/make_synthetic.py --train 8 --val 8 --height 64 --width 128 --seed 5",
            "--output", png,
        )
    )  # fmt: skip
    packed = command("datasets/prepare_shards.py --verify", "--cityscapes", png, "--output", shards)
    assert "train: 8 images in 8 shards" in _succeeds(packed)
    assert len(json.loads((shards / "index.json").read_text())["shards"]) == 12

    fitted = command(
        "tools/kmeans_anchors.py --config-file configs/demo/stage2.yaml",
        "--output", anchors, *SMALL, DETECTRON2_DATASETS=data,
    )  # fmt: skip
    assert "recall@0.5" in _succeeds(fitted)

    trained = command(
        "tools/train_net.py --from-scratch --config-file configs/demo/stage2.yaml", *SMALL,
        "SOLVER.MAX_ITER", "20", "MODEL.FREEZE.MODULES", "[]", "OUTPUT_DIR", run,
        "MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE", anchors, DETECTRON2_DATASETS=data,
    )  # fmt: skip
    _succeeds(trained)
    losses = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    losses = [entry["total_loss"] for entry in losses if "total_loss" in entry]
    assert losses and all(loss < 10 for loss in losses)
    results = json.loads((run / "results.json").read_text())
    assert {row["task"] for row in results["results"]} == {"bbox", "segm", "segm_cityscapes"}

    again = command(
        "tools/train_net.py --eval-only", "--config-file", run / "config.yaml",
        "MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", tmp_path / "again",
        DETECTRON2_DATASETS=data,
    )  # fmt: skip
    _succeeds(again)
    repeated = json.loads((tmp_path / "again" / "results.json").read_text())
    assert repeated["results"] == results["results"]

    report = Path(_succeeds(command("tools/report.py", run)).strip())
    page = report.read_text()
    assert page.count("data:image") >= 5 and "cityscapes_shards_val_report" in page


def test_wrong_input_is_one_line(command, datasets_root, tmp_path):
    train = "tools/train_net.py --config-file configs/stage3.yaml"
    line = _fails_in_one_line(command(train, DETECTRON2_DATASETS=tmp_path / "nowhere"))
    assert "nowhere" in line and "DETECTRON2_DATASETS" in line
    broken = tmp_path / "broken"
    shutil.copytree(datasets_root, broken)
    lost = next((broken / "cityscapes_shards").glob("val_03*"))
    lost.unlink()
    line = _fails_in_one_line(command(train, DETECTRON2_DATASETS=broken))
    assert lost.name in line and "d2c prepare" in line
    known = {"DETECTRON2_DATASETS": datasets_root}
    line = _fails_in_one_line(command(train, "MODEL.WIGHTS", "x", **known))
    assert "MODEL.WIGHTS" in line and "MODEL.WEIGHTS" in line
    line = _fails_in_one_line(command(train, "MODEL.WEIGHTS", tmp_path / "none.pth", **known))
    assert "none.pth" in line
    line = _fails_in_one_line(command("tools/train_net.py --config-file none.yaml"))
    assert "none.yaml" in line
    line = _fails_in_one_line(command(train, "--num-gpus", "64", **known))
    assert "64" in line


def test_wrong_folders_for_the_data_commands(command, tmp_path):
    packed = command(
        "datasets/prepare_shards.py", "--cityscapes", tmp_path, "--output", tmp_path / "out"
    )
    assert "leftImg8bit" in _fails_in_one_line(packed)
    assert not (tmp_path / "out").exists()
    assert "neither" in _fails_in_one_line(command("tools/report.py", tmp_path))
