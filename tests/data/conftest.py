"""Random records for the tests of shards."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.data import write_shards

H, W = 12, 20


@pytest.fixture(scope="module")
def sources(array_source):
    rng = np.random.default_rng(0)
    ids = [0, 7, 26, 24000, 24001, 26003, 33999]
    return [
        array_source(
            f"aachen_{i:06d}_000019_leftImg8bit.png",
            rng.integers(0, 256, (H, W, 3), dtype=np.uint8),
            rng.choice(ids, (H, W)).astype(np.int32),
        )
        for i in range(7)
    ]


@pytest.fixture
def folder(sources, tmp_path):
    write_shards(sources, tmp_path, split="train", partitions=3)
    return tmp_path
