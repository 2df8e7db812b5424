"""Shared scenes: small synthetic trees and shards, made once for the whole run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Small tensors: more threads only fight each other, spinning ones most of all. Set before torch is
# imported.
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytest

from d2_cityscapes.data.shard_writer import write_shards

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ArraySource:
    """A source for shards that lives in memory."""

    file_name: str
    pixels: np.ndarray  # (H, W, 3) uint8
    ids: np.ndarray  # (H, W)

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[:2]

    @property
    def fingerprint(self) -> str:
        return str(int(self.pixels.sum()) + int(self.ids.sum()))

    def image(self) -> np.ndarray:
        return self.pixels

    def instance_ids(self) -> np.ndarray:
        return self.ids


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    """Take away what a training set up: its handlers write to files that do not outlive a test."""
    loggers = [logging.getLogger(name) for name in ("d2_cityscapes", "detectron2", "fvcore")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout, for tests that run the commands."""
    return REPOSITORY


@pytest.fixture(scope="session")
def array_source() -> type[ArraySource]:
    return ArraySource


@pytest.fixture(scope="session")
def cityscapes_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a synthetic Cityscapes tree of 64x128 scenes: 8 train, 8 val."""
    from d2_cityscapes.data.synthetic import make_tree

    root = tmp_path_factory.mktemp("cityscapes")
    make_tree(root, train=8, val=8, height=64, width=128, seed=7)
    return root


@pytest.fixture(scope="session")
def datasets_root(cityscapes_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DETECTRON2_DATASETS folder with the shards of `cityscapes_tree`: 8 + 4 partitions."""
    from d2_cityscapes.data.cityscapes import DEFAULT_PARTITIONS, find_sources

    root = tmp_path_factory.mktemp("datasets")
    for split in ("train", "val"):
        sources = find_sources(cityscapes_tree, split)
        output = root / "cityscapes_shards"
        write_shards(sources, output, split=split, partitions=DEFAULT_PARTITIONS[split])
    return root


@pytest.fixture
def datasets(datasets_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`datasets_root`, with the environment pointing at it."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets_root))
    return datasets_root
