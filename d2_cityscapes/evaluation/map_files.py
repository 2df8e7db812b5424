"""Maps of instance ids in files, read when they are needed.

Shape letters: H, W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["IdMapFile", "IdsPng", "PanopticFileError", "ShardRow", "read_png"]

_ID_MODES = ("L", "I", "I;16", "I;16B")  # before Pillow 11.1, 16 bits were sometimes mode I


class PanopticFileError(D2CityscapesError):
    """Panoptic files that are missing, ambiguous, damaged, or do not fit together."""


class IdMapFile(Protocol):
    """One map on disk; picklable, so that worker processes can read it."""

    @property
    def where(self) -> str:
        """The file, for messages."""

    def read(self) -> np.ndarray:
        """(H, W) integer instance ids."""


@dataclass(frozen=True)
class IdsPng:
    """A PNG of instance ids, 16 bits as Cityscapes ships them, or any other integer mode."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        image = read_png(self.path)
        if image.mode not in _ID_MODES:
            raise PanopticFileError(
                f"{self.path}: a PNG of mode {image.mode}, expected one channel of instance ids; "
                "for COCO panoptic put NAME.json beside the folder NAME of the PNGs"
            )
        return np.asarray(image)


@dataclass(frozen=True)
class ShardRow:
    """A record of a shard."""

    path: Path
    row: int

    @property
    def where(self) -> str:
        return f"{self.path}, record {self.row}"

    def read(self) -> np.ndarray:
        from d2_cityscapes.data.shards import open_shard  # imports torch, which PNGs do not need

        return open_shard(self.path).instance_ids(self.row).numpy()


def read_png(path: Path) -> Image.Image:
    """A decoded PNG.

    Raises:
        PanopticFileError: it is missing, truncated or no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image
    except FileNotFoundError as error:
        raise PanopticFileError(f"{path}: missing") from error
    except UnidentifiedImageError as error:
        raise PanopticFileError(f"{path}: not a readable PNG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PanopticFileError(f"{path}: cannot be decoded ({error})") from error
