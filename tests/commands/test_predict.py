"""d2c predict from the command line, on real files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_trainings import settings

from d2_cityscapes.commands import predict
from d2_cityscapes.engine.prediction.run import FORMATS
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model

COMMAND = "tools/predict.py"


@pytest.fixture
def run(repository, datasets, tmp_path):
    """The folder of a training: a small Mask R-CNN with random weights."""
    file, opts = settings("stage3")
    opts = [*opts, "DATASETS.TEST", "('cityscapes_shards_val',)", "MODEL.DEVICE", "cpu"]
    cfg = load_config(repository / "configs" / file, opts, train=False)
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(3)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture
def picture(cityscapes_tree):
    return sorted((cityscapes_tree / "leftImg8bit" / "val").rglob("*.png"))[0]


def test_a_folder_of_a_training_predicts(call, run, picture, tmp_path) -> None:
    """With --model, as with its two files; nothing is found, and it says why."""
    first, second, third = (tmp_path / name for name in "abc")
    code, out, err = call(COMMAND, "--model", run, "--input", picture, "--output", first)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == f"1 pictures in {first}"
    assert lines[1].startswith("nothing found in 1 pictures: the best score seen is 0.")
    assert lines[1].endswith(
        "objects are drawn from 0.5 on (--score-threshold), and kept from 0.05 on "
        "(MODEL.ROI_HEADS.SCORE_THRESH_TEST)"
    )
    code, out, err = call(
        COMMAND, "--config-file", run / "config.yaml", "--input", picture, "--output", second,
        "MODEL.WEIGHTS", run / "model_final.pth",
    )  # fmt: skip
    assert code == 0, err
    names = sorted(path.name for path in first.iterdir())
    assert [name.rpartition("_")[2] for name in names] == ["drawn.jpg", "instanceIds.png"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    code, out, err = call(
        COMMAND, "--model", run, "--input", "cityscapes_shards_val", f"{picture.parent}/*.png",
        "--format", "ids", "--score-threshold", "0.0", "--batch-size", "3", "--output", third,
    )  # fmt: skip
    assert code == 0 and "nothing found" not in out, err
    maps = sorted(third.glob("*_instanceIds.png"))
    assert len(maps) > 8
    assert any(np.asarray(Image.open(path)).max() >= 1000 for path in maps)


def test_the_help_has_every_format() -> None:
    assert tuple(FORMATS) == predict._FORMATS
    assert all(f"\n  {name} " in predict.__doc__ for name in FORMATS)


def test_mistakes_are_one_line(call, run, picture, tmp_path) -> None:
    def error(*options, code: int = 1) -> str:
        found, out, err = call(COMMAND, *options, "--output", tmp_path / "out")
        assert found == code and not out, err
        return err.strip().splitlines()[-1]

    assert error("--input", picture, code=2).endswith(
        "one of the arguments --model --config-file is required"
    )
    model, given = ("--model", run), ("--input", picture)
    assert "nowhere: no such model" in error("--model", tmp_path / "nowhere", *given)
    assert "nowhere.png: missing" in error(*model, "--input", "nowhere.png")
    assert "*.nothing: matches no file" in error(*model, "--input", f"{tmp_path}/*.nothing")
    assert "/dev/video95: no such camera" in error(*model, "--input", "camera:95")
    assert "--tiles 2: use ROWSxCOLUMNS" in error(*model, *given, "--tiles", "2")
    assert "--tile-overlap goes with" in error(*model, *given, "--tile-overlap", "0.1", code=2)
    assert "use a number from 0 to 1" in error(*model, *given, "--score-threshold", "7", code=2)
    assert "invalid choice: 'gif'" in error(*model, *given, "--format", "gif", code=2)
    assert "predicts no panoptics" in error(*model, *given, "--format", "panoptic")
    assert not (tmp_path / "out").exists()
