"""Maps of instance ids in files, read when they are needed.

Shape letters: H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.png import IDS, read_png

__all__ = ["IdMapFile", "IdsPng", "PanopticFileError", "ShardRow"]

_IDS = replace(
    IDS, name=f"{IDS.name}; for COCO panoptic put NAME.json beside the folder NAME of the PNGs"
)


class PanopticFileError(D2CityscapesError):
    """Panoptic files that are missing, ambiguous, damaged, or do not fit together."""


class IdMapFile(Protocol):
    """One map on disk; picklable, so that worker processes can read it."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def where(self) -> str:
        """The file and place in it, for messages."""

    def read(self) -> np.ndarray:
        """(H, W) integer instance ids."""


@dataclass(frozen=True)
class IdsPng:
    """A PNG of instance ids, 16 bits as Cityscapes ships them, or 8."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        return read_png(self.path, _IDS)


@dataclass(frozen=True)
class ShardRow:
    """A record of a shard."""

    path: Path
    row: int
    table: LabelTable = CITYSCAPES

    @property
    def where(self) -> str:
        return f"{self.path}, record {self.row}"

    def read(self) -> np.ndarray:
        from d2_cityscapes.shards.reader import open_shard  # imports torch, which PNGs do not need

        return open_shard(self.path, self.table).instance_ids(self.row).numpy()
