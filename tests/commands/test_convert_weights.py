"""The command: help of each conversion, a run, and a user's mistakes as one line."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from d2_cityscapes.convert import CONVERSIONS

TOOL = "tools/convert_weights.py"


@pytest.fixture
def call(call):
    """Run the command in this process; returns exit code, stdout and stderr."""
    return partial(call, "tools/convert_weights.py")


@pytest.fixture
def coco(tmp_path):
    """The smallest detector that has the heads of COCO."""
    shapes = {"cls_score": 81, "bbox_pred": 320}
    weights = {"backbone.stem": torch.ones(3)}
    for layer, rows in shapes.items():
        weights[f"roi_heads.box_predictor.{layer}.weight"] = torch.randn(rows, 5)
        weights[f"roi_heads.box_predictor.{layer}.bias"] = torch.randn(rows)
    path = tmp_path / "coco.pth"
    torch.save({"model": weights}, path)
    return path


def test_help(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "examples:" in out
    assert all(kind in out for kind in CONVERSIONS)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("torchvision-deeplab", ["DeepLabV3Segmentor", "STRIDE_IN_1X1"]),
        ("torchvision-resnet", ["ResNeXt", "--details"]),
        ("torchvision-segmentor", ["DeepLabV3Segmentor", "VOC", "--seed"]),
        ("torchvision-rcnn", ["maskrcnn_resnet50_fpn", "--norm-epsilon", "configs/converted/"]),
        ("mmdetection", ["mask-rcnn_r50_fpn_1x_cityscapes", "version 2 or 3"]),
        ("coco-to-cityscapes", ["--rider", "--seed", "blob_stats", "model zoo"]),
        ("vistas-to-cityscapes", ["--seed", "Mapillary Vistas", "train among things"]),
        ("idd-to-cityscapes", ["--seed", "Indian Driving Dataset", "terrain"]),
        ("seamseg", ["SeamlessPanoptic", "mapillary/seamseg"]),
        ("mask2former", ["UniversalSegmentor", "facebookresearch/Mask2Former", "model zoo"]),
        ("to-safetensors", ["--config-file", "d2c.load", ".pyth", "--allow-pickle"]),
        ("to-detectron2", ["--config-file", "DefaultPredictor", "DIR"]),
    ],
)
def test_help_of_each(call, kind, words):
    code, out, _ = call(kind, "--help")
    assert code == 0
    assert all(word in out for word in ["--input", "--output", *words])


def test_converts_and_reports(repository, coco, tmp_path):
    """As a process of its own: it needs no Detectron2 for this one."""
    arguments = ["--input", coco, "--output", tmp_path / "out.pth", "--rider", "person"]
    done = subprocess.run(
        [sys.executable, TOOL, "coco-to-cityscapes", *map(str, arguments)],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "rider: person" in done.stdout
    assert done.stdout.endswith(f"wrote {tmp_path / 'out.pth'}\n")
    found = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert len(found["roi_heads.box_predictor.cls_score.weight"]) == 9


def test_options_reach_the_conversion(call, coco, tmp_path):
    outputs = []
    for seed in (1, 1, 2):
        output = tmp_path / f"{len(outputs)}.pth"
        call("coco-to-cityscapes", "--input", coco, "--output", output, "--seed", seed)
        outputs.append(torch.load(output, weights_only=True)["model"])
    rows = [found["roi_heads.box_predictor.cls_score.weight"] for found in outputs]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_details(call, coco, tmp_path):
    """A line for every tensor, only where they are asked for."""
    arguments = ["coco-to-cityscapes", "--input", coco, "--output", tmp_path / "out.pth"]
    _, short, _ = call(*arguments)
    _, long, _ = call(*arguments, "--details")
    assert "5 tensors in the file: 1 matched, 4 reshaped\n" in short
    assert "matched backbone.stem\n" in long
    assert len(long.splitlines()) == len(short.splitlines()) + 5


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["caffe"],
        ["to-detectron2"],
        ["coco-to-cityscapes", "--rider", "horse"],
        ["torchvision-rcnn", "--input", "a", "--output", "b", "--norm-epsilon", "-1"],
    ],
)
def test_wrong_usage(call, arguments):
    code, _, err = call(*arguments)
    assert code == 2
    assert "usage:" in err


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("torchvision-deeplab", None, "no such file"),
        ("torchvision-deeplab", b"nothing", "cannot be read as weights"),
        ("coco-to-cityscapes", b"nothing", "cannot be read as weights"),
        ("to-detectron2", b"nothing", "name the config in --config-file"),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, kind, content, message):
    path, output = tmp_path / "in.pth", tmp_path / "out.pth"
    if content is not None:
        path.write_bytes(content)
    code, out, err = call(kind, "--input", path, "--output", output)
    assert code == 1
    assert out == ""
    assert [line.startswith("error: ") for line in err.splitlines()] == [True]
    assert message in err
    assert not output.exists()
