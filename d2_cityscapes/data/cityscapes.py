"""The official Cityscapes folder tree as sources for shards."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from d2_cityscapes.data.source_check import check_ids
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable

__all__ = [
    "DEFAULT_PARTITIONS",
    "CityscapesError",
    "PngSource",
    "find_cities",
    "find_sources",
    "find_splits",
    "parse_partitions",
]

# Number of shards of each split: 8 + 4 as in the paper.
DEFAULT_PARTITIONS = {"train": 8, "val": 4, "train_extra": 16}
_IMAGE_SUFFIX = "_leftImg8bit.png"
_ANNOTATIONS = {"train": "gtFine", "val": "gtFine", "train_extra": "gtCoarse"}
# Pillow's mode and the bit depth in the file; before Pillow 11.1, 16 bits were sometimes mode I
_IMAGE_MODES = (("RGB", 8),)
_ID_MODES = (("L", 8), ("I", 16), ("I;16", 16), ("I;16B", 16))
_PNG_END = b"IEND\xae\x42\x60\x82"
_Result = TypeVar("_Result")


class CityscapesError(D2CityscapesError):
    """A Cityscapes tree that is missing, incomplete or damaged."""


@dataclass(frozen=True)
class PngSource:
    """An image and its ``*_instanceIds.png``; either may turn out to be missing or damaged.

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
        return _read_png(self.image_path, lambda image: (image.height, image.width))

    @property
    def fingerprint(self) -> str:
        try:
            return f"{self.image_path.stat().st_size}+{self.ids_path.stat().st_size}"
        except OSError as error:
            raise CityscapesError(f"{error.filename}: cannot be read ({error.strerror})") from error

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return _read_png(self.image_path, np.asarray)

    def instance_ids(self) -> np.ndarray:
        """(H, W) instance ids."""
        return _read_png(self.ids_path, np.asarray)

    def problems(self, table: LabelTable) -> list[str]:
        """Everything that is wrong with the two files; the id map is decoded, the image is not."""
        found = []
        for path, modes, expected in (
            (self.image_path, _IMAGE_MODES, "RGB with 8 bits"),
            (self.ids_path, _ID_MODES, "one channel of integers (*_instanceIds.png)"),
        ):
            try:
                mode, depth = _inspect(path)
                if (mode, depth) not in modes:
                    found.append(f"{path}: {mode} with {depth} bits, expected {expected}")
            except CityscapesError as error:
                found.append(str(error))
        if not found:
            ids_problems = check_ids(self.instance_ids(), self.size, table)
            found += [f"{self.ids_path}: {problem}" for problem in ids_problems]
        return found


def find_sources(
    root: str | Path, split: str, *, cities: Collection[str] = (), limit: int | None = None
) -> list[PngSource]:
    """The annotated images of a split, sorted by city, sequence and frame.

    Looks for ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``*_instanceIds.png`` in the same
    place under ``gtFine`` (train_extra: ``gtCoarse``). Where one of the two is missing, the source
    is listed all the same, and says so when it is checked.

    Args:
        root: the folder of leftImg8bit.
        split: "train", "val" or "train_extra".
        cities: only these; empty for all.
        limit: only the first so many.

    Raises:
        CityscapesError: another split, or no images or no id maps at all.
    """
    root = Path(root)
    if limit is not None and limit < 1:
        raise CityscapesError(f"limit {limit}; give 1 or more")
    annotation = _annotation_folder(split)
    suffixes = {"leftImg8bit": _IMAGE_SUFFIX, annotation: f"_{annotation}_instanceIds.png"}
    scenes: set[tuple[str, str]] = set()  # city, {city}_{sequence}_{frame}
    for kind, suffix in suffixes.items():
        found = {
            (path.parent.name, path.name.removesuffix(suffix))
            for path in (root / kind / split).glob(f"*/*{suffix}")
        }
        if not found:
            raise CityscapesError(
                f"{root}: no {kind}/{split}/*/*{suffix}; expected the Cityscapes root with "
                f"leftImg8bit/ and {annotation}/ (see datasets/README.md)"
            )
        scenes |= found
    chosen = sorted((s for s in scenes if not cities or s[0] in cities), key=lambda s: s[1])
    if not chosen:
        raise CityscapesError(
            f"{root}: no images of {', '.join(cities)} in {split}; leave the split out"
        )
    return [
        PngSource(*(root / kind / split / city / (stem + end) for kind, end in suffixes.items()))
        for city, stem in chosen[:limit]
    ]


def find_cities(root: str | Path, split: str) -> list[str]:
    """Names of the cities of a split."""
    root = Path(root)
    folders = [root / kind / split for kind in ("leftImg8bit", _annotation_folder(split))]
    return sorted({city.name for folder in folders for city in folder.glob("*") if city.is_dir()})


def find_splits(
    root: str | Path,
    splits: Sequence[str],
    *,
    cities: Collection[str] = (),
    limit: int | None = None,
) -> dict[str, list[PngSource]]:
    """The sources of several splits; see `find_sources`.

    Raises:
        CityscapesError: also for a city that none of the splits has.
    """
    known = sorted({city for split in splits for city in find_cities(root, split)})
    unknown = [city for city in cities if city not in known]
    if unknown and known:
        nearest = {n: None for c in unknown for n in difflib.get_close_matches(c, known)}
        raise CityscapesError(
            f"{root}: no city {', '.join(unknown)} in {', '.join(splits)}; "
            + (f"did you mean {', '.join(nearest)}?" if nearest else f"it has {', '.join(known)}")
        )
    return {split: find_sources(root, split, cities=cities, limit=limit) for split in splits}


def parse_partitions(arguments: Sequence[str]) -> dict[str, int]:
    """Split -> number of shards, from texts "SPLIT=N"; `DEFAULT_PARTITIONS` for the others.

    Raises:
        CityscapesError: an unknown split, or not a number from 1.
    """
    partitions = dict(DEFAULT_PARTITIONS)
    for argument in arguments:
        split, _, number = argument.partition("=")
        if split not in partitions or not number.isdecimal() or int(number) < 1:
            raise CityscapesError(
                f"partitions {argument!r}; give SPLIT=N with N from 1 and a split of "
                f"{', '.join(partitions)}"
            )
        partitions[split] = int(number)
    return partitions


def _annotation_folder(split: str) -> str:
    if split not in _ANNOTATIONS:
        raise CityscapesError(f"split {split!r}; Cityscapes has {', '.join(_ANNOTATIONS)}")
    return _ANNOTATIONS[split]


def _inspect(path: Path) -> tuple[str, int]:
    """Pillow's mode and the bit depth of a PNG whose checksums are right up to its end."""

    def inspect(image: Image.Image) -> tuple[str, int]:
        mode = image.mode
        image.verify()  # compares the checksum of every chunk, decodes nothing
        with open(path, "rb") as file:
            depth = file.read(25)[24]  # Pillow's mode is RGB at 16 bits too
            file.seek(max(0, path.stat().st_size - 4096))
            if _PNG_END not in file.read():  # Pillow stops in front of the last checksum
                raise OSError("truncated")
        return mode, depth

    return _read_png(path, inspect)


def _read_png(path: Path, read: Callable[[Image.Image], _Result]) -> _Result:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return read(image)
    except FileNotFoundError as error:
        raise CityscapesError(f"{path}: missing") from error
    except UnidentifiedImageError as error:
        raise CityscapesError(f"{path}: not a readable PNG; download it again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CityscapesError(f"{path}: cannot be read ({error.strerror})") from error
        raise CityscapesError(f"{path}: cannot be decoded ({error}); download it again") from error
