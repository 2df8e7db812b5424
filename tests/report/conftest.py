"""Folders filled like the OUTPUT_DIR of trainings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.evaluation.results import make_rows, write_results


def _write_run(folder: Path, ap: float = 40.0, iterations: int = 50) -> Path:
    """An output folder of one training."""
    (folder / "pictures" / "val_report").mkdir(parents=True)
    lines = [
        {
            "iteration": i,
            "total_loss": 9 / (i + 1),
            "loss_cls": 6 / (i + 1),
            "loss_mask": 3 / (i + 1),
        }
        for i in range(0, iterations, 10)
    ]
    lines.append({"iteration": iterations, "segm/AP": ap})
    text = "\n".join(map(json.dumps, lines))
    (folder / "metrics.json").write_text(text + '\n{"iteration": 51, "total_l')
    (folder / "config.yaml").write_text("MODEL: {}\n")
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(
        folder / "pictures" / "val_report" / "town_<1>.png"
    )
    rows = make_rows(
        "segm", {"AP": (ap, 8), "AP-car": (ap, 1), "AP-bus": (None, 0)},
        protocol="COCO", dataset="val_report", images=9,
    )  # fmt: skip
    rows += make_rows(
        "segm", {"AP": (ap / 2, 8)}, protocol="Cityscapes", dataset="val_report", images=9
    )
    write_results(folder / "results.json", rows, seconds=3, command=["train_net.py", "<x>"])
    return folder


@pytest.fixture
def write_run() -> Callable[..., Path]:
    """(folder, ap, iterations) -> the folder, filled like the OUTPUT_DIR of one training."""
    return _write_run


@pytest.fixture
def stages(tmp_path: Path) -> Path:
    """A run_stages folder of three stages."""
    for number in range(3):
        _write_run(tmp_path / "all" / f"stage{number}", ap=30.0 + number)
    (tmp_path / "all" / "anchors.json").write_text("{}")
    return tmp_path / "all"
