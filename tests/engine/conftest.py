"""Overrides that make the demo's configs small enough for tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def tiny_opts() -> list[str]:
    """64 x 128 input, two images a step, a few small proposals, no worker processes."""
    return [
        "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "128",
        "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128",
        "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "3", "SOLVER.WARMUP_ITERS", "0",
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50", "MODEL.RPN.POST_NMS_TOPK_TEST", "50",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32", "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
        "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "1",
        "TEST.EXPECTED_RESULTS", "[]",
    ]  # fmt: skip
