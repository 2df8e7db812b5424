"""The scenes of a check, made by itself, as shards that Detectron2 knows by name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.benchmark.gpu.settings import GpuCheck, Size
from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.shards.writer import write_shards
from d2_cityscapes.sources.cityscapes import find_sources
from d2_cityscapes.synthetic.dataset import make_tree

__all__ = ["COMPARED", "FULL", "GATE", "datasets_of"]

# Names of the datasets: for equal numbers, at full size, and those that are learned by heart.
COMPARED, FULL, GATE = (f"gpu_check_{kind}" for kind in ("compared", "full", "gate"))
_GATE_SIZE, _GATE_IMAGES, _GATE_SEED = (64, 128), 8, 7  # as the gates of configs/quick were set


@contextlib.contextmanager
def datasets_of(check: GpuCheck) -> Iterator[None]:
    """All datasets, made if need be, registered in the block."""
    _make(check, COMPARED, check.compared_size, images=4)
    _make(check, FULL, check.full_size, images=check.images)
    _make(check, GATE, _GATE_SIZE, images=_GATE_IMAGES, seed=_GATE_SEED)
    try:
        yield
    finally:
        for name in (COMPARED, FULL, GATE):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _make(check: GpuCheck, name: str, size: Size, *, images: int, seed: int = 1) -> None:
    tree, shards = check.scenes(size, images), check.shards(size, images)
    height, width = size
    workers = min(os.cpu_count() or 1, 8, images)
    make_tree(tree, train=images, val=0, height=height, width=width, seed=seed, workers=workers)
    write_shards(find_sources(tree, "train"), shards, split="train")
    register_cityscapes_shards(name, shards, split="train")
