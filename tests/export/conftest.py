"""Small models with random weights and statistics, as runs that can be exported."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from PIL import Image

from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.export import run
from d2_cityscapes.export.build import build_graph
from d2_cityscapes.export.describe import describe, sizes_of
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.modeling.build import build_model

SMALL = [
    "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.02, "MODEL.FPN.OUT_CHANNELS", 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "TEST.DETECTIONS_PER_IMAGE", 20,
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", 0.02,
]  # fmt: skip


@pytest.fixture
def make_run(repository, tmp_path) -> Callable[..., Path]:
    """(config, *overrides) -> the folder of a run of a random model."""

    def make(config: str, *opts) -> Path:
        folder = tmp_path / "run"
        cfg = load_config(repository / "configs" / config, [*SMALL, *opts], train=False)
        torch.manual_seed(3)
        model = build_model(cfg)
        for name, tensor in model.state_dict().items():
            if name.endswith(("norm.weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.uniform_(-0.2, 0.2)
        folder.mkdir()
        (folder / "config.yaml").write_text(cfg.dump())
        torch.save({"model": model.state_dict()}, folder / "model_final.pth")
        return folder

    return make


@pytest.fixture
def run_graph() -> Callable[..., Callable[[np.ndarray], dict]]:
    """(cfg, size) -> what run.py makes of the graph, which PyTorch computes as it is."""

    def make(cfg: CfgNode, size: tuple[int, int] | None = None):
        sizes = None if size is None else sizes_of(cfg, size)
        graph = build_graph(cfg, CITYSCAPES, sizes=sizes)
        beside = {
            "outputs": graph.outputs,
            "fixed": None if size is None else list(size),
            "multiple": 1 if size is not None else graph.pixels.multiple,
        }
        about = describe(cfg, CITYSCAPES, "onnx", weights_sha256="", graph=beside)

        def runtime(inputs: list[np.ndarray]) -> list[np.ndarray]:
            tensors = [torch.from_numpy(x) for x in inputs]
            if size is not None:
                tensors.append(torch.tensor([*sizes.network, *size]))
            with torch.no_grad():
                return [output.numpy() for output in graph(*tensors)]

        return partial(run._predict, about, runtime)

    return make


@pytest.fixture
def street(cityscapes_tree) -> Callable[..., np.ndarray]:
    """(height, width) -> (H, W, 3) uint8 of a made-up street."""
    path = sorted(cityscapes_tree.rglob("*_leftImg8bit.png"))[0]

    def scaled(height: int, width: int) -> np.ndarray:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB").resize((width, height)))

    return scaled
