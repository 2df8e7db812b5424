"""Loss curves from the metrics.json of a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from d2_cityscapes.report.curves import draw_loss_curves, draw_losses, read_losses
from d2_cityscapes.report.run import find_runs


def test_losses_skip_evaluations_and_cut_lines(write_run: Callable, tmp_path: Path) -> None:
    losses = read_losses(write_run(tmp_path / "run") / "metrics.json")
    assert list(losses) == ["total_loss", "loss_cls", "loss_mask"]
    assert losses["total_loss"] == {i: 9 / (i + 1) for i in range(0, 50, 10)}


def test_losses_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": v} for i, v in ((0, 3.0), (20, 2.0), (20, 1.0))]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_losses(path) == {"total_loss": {0: 3.0, 20: 1.0}}


def test_what_a_stop_lost_does_not_count(tmp_path: Path) -> None:
    """Killed after iteration 40, with a checkpoint at 10, and logged less often since."""
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": 1.0} for i in (0, 10, 20, 30, 40)]
    lines += [{"iteration": i, "total_loss": 2.0} for i in (15, 35)]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_losses(path) == {"total_loss": {0: 1.0, 10: 1.0, 15: 2.0, 35: 2.0}}


def test_losses_of_validations(tmp_path: Path) -> None:
    """They have lines of their own where the two are not logged at the same iteration."""
    path = tmp_path / "metrics.json"
    lines = [
        {"iteration": 19, "total_loss": 4.0, "loss_cls": 3.0, "lr": 0.1},
        {"iteration": 24, "val/total_loss": 5.0, "val/loss_cls": 3.5},
        {"iteration": 39, "total_loss": 2.0, "loss_cls": 1.0, "val/total_loss": 4.5, "segm/AP": 1},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_losses(path) == {
        "total_loss": {19: 4.0, 39: 2.0},
        "loss_cls": {19: 3.0, 39: 1.0},
        "val/total_loss": {24: 5.0, 39: 4.5},
        "val/loss_cls": {24: 3.5},
    }


def test_a_validation_is_dashed_in_the_colour_of_its_loss() -> None:
    axis = Figure().subplots()
    names = ("total_loss", "loss_cls", "loss_mask", "val/total_loss", "val/loss_mask")
    draw_losses(axis, {name: {0: 2.0, 10: 1.0} for name in names})
    lines = {line.get_label(): line for line in axis.get_lines()}
    assert set(lines) == {"total", "total, validation", "cls", "mask", "mask, validation"}
    for name, line in lines.items():
        assert line.get_linestyle() == ("--" if "validation" in name else "-")
        assert line.get_color() == lines[name.partition(",")[0]].get_color()
    assert len({line.get_color() for line in lines.values()}) == 3


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


def test_lines_of_something_else_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.json"
    good = ['{"iteration": 0, "total_loss": 3.0}', '{"iteration": 20, "total_loss": 2}']
    wrong = [
        '{"iteration": "x", "total_loss": 1.0}',
        '{"iteration": 1.5, "total_loss": 1.0}',
        '{"iteration": [1], "total_loss": 1.0}',
        '{"iteration": true, "total_loss": 1.0}',
        '{"iteration": 5, "total_loss": "low"}',
        '{"iteration": 5, "total_loss": null}',
        '{"iteration": 5, "total_loss": {"a": 1}}',
        '{"iteration": 1' + "0" * 400 + ', "total_loss": 1.0}',
        '{"iteration": 5, "total_loss": 1' + "0" * 400 + "}",
        "[3]",
        "no JSON",
        "[" * 100_000,
    ]
    path.write_text("\n".join([good[0], *wrong, good[1], '{"iterat']))
    assert read_losses(path) == {"total_loss": {0: 3.0, 20: 2}}
    assert f"metrics.json: skipped {len(wrong)} lines" in caplog.text
    assert draw_loss_curves({"run": path}, tmp_path / "curves.png")
