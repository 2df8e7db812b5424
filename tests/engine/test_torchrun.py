"""tools/train_net.py under torchrun is tools/train_net.py alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

# Nothing is a mean over what a rank has more of than another: see test_distributed.py.
DETECTOR = [
    "MODEL.FREEZE.MODULES", "['backbone.bottom_up']", "MODEL.MASK_ON", "False",
    "MODEL.RESNETS.NORM", "GN", "MODEL.RPN.IN_FEATURES", "['p4', 'p5']",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32]]", "MODEL.RPN.NMS_THRESH", "1.0",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "120", "MODEL.RPN.POSITIVE_FRACTION", "1.0",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "120", "MODEL.RPN.POST_NMS_TOPK_TRAIN", "120",
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False", "MODEL.ROI_BOX_HEAD.GIOU_WEIGHT", "0.0",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "120", "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.MAX_ITER", "20", "TEST.EXPECTED_RESULTS", "[]",
]  # fmt: skip
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture
def train_net(repository, datasets, tmp_path):
    """(launcher, folder, arguments) -> the finished command, which wrote to that folder."""

    def call(launcher: list[str], folder: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [
            *launcher, str(repository / "tools/train_net.py"), "--config-file",
            str(repository / "configs/quick/instance.yaml"), *arguments,
            "OUTPUT_DIR", str(tmp_path / folder),
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
        return subprocess.run(
            command, env=environment, check=False, capture_output=True, text=True, timeout=280
        )

    return call


def last_losses(folder: Path) -> dict[str, float]:
    """Of metrics.json, where they are medians over the last 20 steps."""
    entries = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    *_, last = (entry for entry in entries if "total_loss" in entry)
    return {name: value for name, value in last.items() if "loss" in name}


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())["results"]


def test_training_and_evaluation(train_net, tmp_path):
    for launcher, folder in ((ALONE, "one"), (TORCHRUN, "two")):
        found = train_net(launcher, folder, *DETECTOR)
        assert found.returncode == 0, found.stderr
    one, two = (tmp_path / name for name in ("one", "two"))
    states = [
        torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (one, two)
    ]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=0, atol=1e-5)
    logged = [last_losses(folder) for folder in (one, two)]
    losses = logged[0].keys()
    assert {"total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"} <= losses
    assert logged[1] == pytest.approx(logged[0], rel=0, abs=1e-5)
    # the same weights, evaluated by one process and by two
    weights = ("MODEL.WEIGHTS", str(one / "model_final.pth"))
    found = train_net(TORCHRUN, "evaluated", "--eval-only", *DETECTOR, *weights)
    assert found.returncode == 0, found.stderr
    assert rows(tmp_path / "evaluated") == rows(one)


def test_a_mistake_is_one_line(train_net):
    found = train_net(TORCHRUN, "out", "SOLVER.MAX_ITERS", "20")
    assert found.returncode == 1
    (said,) = (line for line in found.stderr.splitlines() if line.startswith("error:"))
    assert "unknown config key SOLVER.MAX_ITERS; nearest: SOLVER.MAX_ITER," in said
    assert "ConfigError" not in found.stderr
