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
    images = 4 if check.tiny else 16
    _make(check, COMPARED, check.compared_size, 4, seed=1)
    _make(check, FULL, check.full_size, images, seed=1)
    _make(check, GATE, _GATE_SIZE, _GATE_IMAGES, seed=_GATE_SEED)
    names = (COMPARED, FULL, GATE)
    for name in names:
        register_cityscapes_shards(name, check.output / "shards" / _folder(name), split="train")
    try:
        yield
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def _make(check: GpuCheck, name: str, size: Size, images: int, *, seed: int) -> None:
    tree = check.output / "scenes" / _folder(name)
    height, width = size
    workers = min(os.cpu_count() or 1, 8, images)
    make_tree(
        tree, train=images, val=0, height=height, width=width, seed=seed, workers=workers,
    )  # fmt: skip
    write_shards(
        find_sources(tree, "train"), check.output / "shards" / _folder(name), split="train"
    )


def _folder(name: str) -> str:
    return name.removeprefix("gpu_check_")
