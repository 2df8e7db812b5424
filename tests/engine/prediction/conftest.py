"""Small models with random weights, saved once, and small videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_trainings import settings

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.modeling.build import build_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """(config file, overrides) -> its config, with random weights that are made once."""
    known: dict[tuple, str] = {}

    def config(file: Path, opts: Sequence[str]):
        found = load_config(file, opts, train=False)
        key = (file, *opts)
        if key not in known:
            known[key] = str(tmp_path_factory.mktemp("weights") / "weights.pth")
            torch.manual_seed(3)
            torch.save({"model": build_model(found).state_dict()}, known[key])
        found.defrost()
        found.MODEL.WEIGHTS = known[key]
        return found

    return config


@pytest.fixture
def cfg(repository, datasets, tiny_opts, saved):
    """A tiny semantic model."""
    opts = [*tiny_opts, "DATASETS.TEST", "('cityscapes_shards_val',)", "INPUT.FORMAT", "BGR"]
    return saved(repository / "configs" / "quick" / "semantic.yaml", [*opts, *_SMALL])


@pytest.fixture
def instance_cfg(repository, datasets, saved):
    """A tiny Mask R-CNN that keeps every box, however low its score."""
    file, opts = settings("stage3")
    return saved(repository / "configs" / file, [*opts, *_KEPT])


@pytest.fixture
def panoptic_cfg(repository, datasets, saved):
    """A tiny panoptic model that draws every box and any stuff."""
    file, opts = settings("stage4")
    combine = "MODEL.PANOPTIC_FPN.COMBINE"
    opts = [*opts, *_KEPT, f"{combine}.INSTANCES_CONFIDENCE_THRESH", "0.0"]
    return saved(repository / "configs" / file, [*opts, f"{combine}.STUFF_AREA_LIMIT", "1"])


_SMALL = ["MODEL.FPN.OUT_CHANNELS", "16", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32"]
_KEPT = [
    "DATASETS.TEST", "('cityscapes_shards_val',)", "MODEL.DEVICE", "cpu",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
]  # fmt: skip


@pytest.fixture
def scene(cityscapes_tree) -> np.ndarray:
    """(64, 128, 3) uint8 RGB."""
    path = sorted((cityscapes_tree / "leftImg8bit" / "val").rglob("*.png"))[0]
    return np.array(Image.open(path))


@pytest.fixture
def film(scene) -> Callable[..., Path]:
    """(path, times in ms) -> an MP4 of a scene that moves to the left, a picture for each time."""
    pytest.importorskip("av")
    from d2_cityscapes.engine.prediction.videos import VideoWriter

    def write(path: Path, times: Sequence[int] = range(0, 400, 40), comment: str = "") -> Path:
        with open(path, "wb+") as file:
            writer = VideoWriter(
                file, rate=Fraction(25), time_base=Fraction(1, 1000), comment=comment
            )
            for number, time in enumerate(times):
                writer.write(np.roll(scene, -3 * number, axis=1), time)
            writer.close()
        return path

    return write
