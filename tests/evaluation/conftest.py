"""Random street-like maps of instance ids: overlapping rectangles of every kind of id."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.evaluation.results import make_rows, write_results

# stuff, void, instances of six classes, group regions, an instance of a class that is not evaluated
_IDS = (
    7,
    8,
    11,
    21,
    23,
    0,
    1,
    24000,
    24001,
    25000,
    26000,
    26001,
    28000,
    32000,
    33000,
    24,
    26,
    29000,
)


def _paint(seed: int, size: tuple[int, int] = (48, 96), shapes: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.full(size, rng.choice(_IDS), dtype=np.int32)
    for instance_id in rng.choice(_IDS, shapes):
        height, width = rng.integers(2, size[0] // 2), rng.integers(2, size[1] // 2)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        ids[top : top + height, left : left + width] = instance_id
    return ids


def _disturb(ids: np.ndarray, seed: int) -> np.ndarray:
    """A prediction for a map: moved by some pixels, partly repainted."""
    rng = np.random.default_rng(seed)
    moved = np.roll(ids, rng.integers(-3, 4, size=2), axis=(0, 1))
    other = _paint(seed + 1, ids.shape)
    return np.where(_paint(seed + 2, ids.shape) > 28500, other, moved)


@pytest.fixture(scope="session")
def paint() -> Callable[..., np.ndarray]:
    """(seed, size, shapes) -> (H, W) int32 instance ids."""
    return _paint


@pytest.fixture(scope="session")
def disturb() -> Callable[[np.ndarray, int], np.ndarray]:
    """(ids, seed) -> a prediction for them."""
    return _disturb


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
