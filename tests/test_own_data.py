"""docs/own_data.md works as it stands: its table and its script train on drawn scenes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLORS = {1: (0, 60, 120), 2: (120, 120, 120), 3: (200, 30, 30), 4: (230, 180, 0)}


@pytest.fixture
def folder(repository: Path, tmp_path: Path) -> Path:
    """The files of the page, and ten scenes with a ship each and a crane on the quay."""
    page = (repository / "docs" / "own_data.md").read_text()
    blocks = dict(re.findall(r"^ *```(yaml|python)\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL))
    (tmp_path / "classes.yaml").write_text(textwrap.dedent(blocks["yaml"]))
    (tmp_path / "own_data.py").write_text(textwrap.dedent(blocks["python"]))
    rng = np.random.default_rng(0)
    for name in ("images", "ids"):
        (tmp_path / name).mkdir()
    for number in range(10):
        ids = np.full((64, 128), 1, np.uint16)
        ids[44:] = 2
        x, y = rng.integers(0, 80), rng.integers(0, 20)
        ids[y : y + 20, x : x + 40] = 3000
        ids[40:60, x : x + 8] = 4000
        pixels = np.zeros((64, 128, 3), np.uint8)
        for label_id, color in COLORS.items():
            pixels[np.where(ids >= 1000, ids // 1000, ids) == label_id] = color
        Image.fromarray(pixels).save(tmp_path / "images" / f"scene_{number}.png")
        Image.fromarray(ids).save(tmp_path / "ids" / f"scene_{number}.png")
    return tmp_path


@pytest.mark.slow
def test_it_packs_trains_and_scores(repository: Path, folder: Path) -> None:
    config = repository / "configs" / "quick" / "panoptic.yaml"
    opts = ["SOLVER.MAX_ITER", "30", "TEST.EXPECTED_RESULTS", "[]", "OUTPUT_DIR", folder / "out"]
    done = subprocess.run(
        [sys.executable, "own_data.py", "--config-file", config, *opts],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((folder / "out" / "results.json").read_text())["results"]
    found = {row["metric"]: row["value"] for row in rows if row["task"] == "panoptic_seg"}
    names = ["water", "quay", "ship", "crane"]
    assert [m.removeprefix("PQ-") for m in found if m.startswith("PQ-")] == names
    assert found["PQ"] > 20
