"""Loss curves from the metrics.json of a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from d2_cityscapes.evaluation.curves import draw_loss_curves, read_losses
from d2_cityscapes.evaluation.report import find_runs


def test_losses_skip_evaluations_and_cut_lines(write_run: Callable, tmp_path: Path) -> None:
    losses = read_losses(write_run(tmp_path / "run") / "metrics.json")
    assert list(losses) == ["total_loss", "loss_cls", "loss_mask"]
    assert losses["total_loss"] == {i: 9 / (i + 1) for i in range(0, 50, 10)}


def test_losses_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": v} for i, v in ((0, 3.0), (20, 2.0), (20, 1.0))]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_losses(path) == {"total_loss": {0: 3.0, 20: 1.0}}


def test_loss_curves_of_stages(stages: Path, tmp_path: Path) -> None:
    runs = {run.name: run.metrics for run in find_runs(stages)}
    assert list(runs) == ["stage0", "stage1", "stage2"]
    assert draw_loss_curves(runs, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).std() > 10
    (tmp_path / "empty.json").write_text("")
    assert not draw_loss_curves({"a": tmp_path / "empty.json"}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
