"""The official Cityscapes folder tree as sources for shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["DEFAULT_PARTITIONS", "CityscapesError", "PngSource", "find_sources"]

# Number of shards of each split: 8 + 4 as in the paper.
DEFAULT_PARTITIONS = {"train": 8, "val": 4, "train_extra": 16}
_IMAGE_SUFFIX = "_leftImg8bit.png"
_ANNOTATIONS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}


class CityscapesError(D2CityscapesError):
    """A Cityscapes tree that is missing, incomplete or damaged."""


@dataclass(frozen=True)
class PngSource:
    """An image and its ``*_instanceIds.png``.

    Attributes:
        image_path: 8-bit RGB PNG.
        ids_path: PNG of instance ids (16 bit as shipped; any integer mode is read).
    """

    image_path: Path
    ids_path: Path

    @property
    def file_name(self) -> str:
        return self.image_path.name

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image, from the header of the file."""
        return _png_size(self.image_path)

    @property
    def fingerprint(self) -> str:
        return f"{self.image_path.stat().st_size}+{self.ids_path.stat().st_size}"

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return _read_png(self.image_path, "RGB")

    def instance_ids(self) -> np.ndarray:
        """(H, W) instance ids."""
        return _read_png(self.ids_path)


def find_sources(root: str | Path, split: str) -> list[PngSource]:
    """The annotated images of a split, sorted by city, sequence and frame.

    Looks for ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and its ``*_instanceIds.png`` in the same
    place under ``gtFine`` (train_extra: ``gtCoarse``).

    Raises:
        CityscapesError: no images, or a list of everything that is missing or does not fit.
    """
    root = Path(root)
    if split not in _ANNOTATIONS:
        raise CityscapesError(f"split {split!r}; Cityscapes has {', '.join(_ANNOTATIONS)}")
    annotation = _ANNOTATIONS[split]
    folder = root / "leftImg8bit" / split
    images = sorted(folder.glob(f"*/*{_IMAGE_SUFFIX}"), key=lambda path: path.name)
    if not images:
        raise CityscapesError(
            f"{root}: no {folder.relative_to(root)}/*/*{_IMAGE_SUFFIX}; expected the Cityscapes "
            f"root with leftImg8bit/ and {annotation}/ (see datasets/README.md)"
        )
    sources, problems = [], []
    for image in images:
        stem = image.name.removesuffix(_IMAGE_SUFFIX)
        ids = root / annotation / split / image.parent.name / f"{stem}_{annotation}_instanceIds.png"
        source = PngSource(image, ids)
        if not ids.is_file():
            problems.append(f"missing {ids}")
        else:
            problems += _check_sizes(source)
        sources.append(source)
    if problems:
        raise CityscapesError(f"{len(problems)} problems in {root}: " + "; ".join(problems))
    return sources


def _check_sizes(source: PngSource) -> list[str]:
    try:
        ids_size = _png_size(source.ids_path)
        if source.size != ids_size:
            return [f"{source.ids_path} is {ids_size}, its image {source.size} (H, W)"]
    except CityscapesError as error:
        return [str(error)]
    return []


def _png_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, UnidentifiedImageError) as error:
        raise CityscapesError(f"{path}: not a readable PNG") from error


def _read_png(path: Path, mode: str | None = None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image if mode in (None, image.mode) else image.convert(mode))
    except (OSError, SyntaxError) as error:  # Pillow reports broken PNG chunks as SyntaxError
        raise CityscapesError(f"{path}: cannot be decoded, download it again ({error})") from error
