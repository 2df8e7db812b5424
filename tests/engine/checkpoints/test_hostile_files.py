"""Weights from elsewhere run nothing, and name no file outside of their folder."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError

CONFIG = "configs/quick/instance.yaml"


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
@pytest.mark.parametrize("more", [["--eval-only"], ["--resume"], []])
def test_nothing_in_weights_is_run(datasets, tmp_path, call, suffix, more):
    path, mark, out = tmp_path / f"evil{suffix}", tmp_path / "mark", tmp_path / "out"
    content = {"model": {"a": np.zeros(3)}, "__author__": "", "trainer": Evil(mark)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    opts = ["MODEL.WEIGHTS", path]
    if more == ["--resume"]:
        out.mkdir()
        (out / path.name).write_bytes(path.read_bytes())
        (out / "last_checkpoint").write_text(path.name)
        opts = []
    code, _, errors = call(
        "tools/train_net.py", "--config-file", CONFIG, *more, *opts,
        "DATASETS.TEST", "('cityscapes_shards_val',)", "TEST.EXPECTED_RESULTS", "[]",
        "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "1", "OUTPUT_DIR", out,
    )  # fmt: skip
    line = errors.strip().splitlines()[-1]
    assert code == 1 and line.startswith("error: ") and "cannot be read as weights" in line
    assert "Traceback" not in errors and "--allow-pickle" in line
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../other/model.pth", "/etc/passwd", "{tmp}/other/model.pth"])
def test_a_training_resumes_from_its_own_folder(tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    Checkpointer(nn.Linear(2, 2), str(tmp_path / "other")).save("model")
    (tmp_path / "out/last_checkpoint").write_text(name.format(tmp=tmp_path))
    with pytest.raises(CheckpointError, match=r"out/last_checkpoint: names .* not in its folder"):
        Checkpointer(nn.Linear(2, 2), str(tmp_path / "out")).resume_or_load("", resume=True)


def test_a_damaged_name_is_one_line(tmp_path):
    (tmp_path / "last_checkpoint").write_bytes(b"\xff\xfe\x00model")
    with pytest.raises(CheckpointError, match=r"last_checkpoint: names no file; delete it$"):
        Checkpointer(nn.Linear(2, 2), str(tmp_path)).resume_or_load("", resume=True)


def test_the_whole_path_of_the_own_folder_is_taken(tmp_path):
    source, model = nn.Linear(2, 2), nn.Linear(2, 2)
    Checkpointer(source, str(tmp_path)).save("model")
    (tmp_path / "last_checkpoint").write_text(str(tmp_path / "model.pth"))
    Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert model.weight.equal(source.weight)
