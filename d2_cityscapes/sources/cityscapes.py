"""The official Cityscapes folder tree as sources for shards."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import IDS, RGB, PngError, check_png, read_header, read_png
from d2_cityscapes.sources.check import check_ids, check_limit, contents, file_sizes
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.listing import by_name, list_files, missing_file, other_pictures
from d2_cityscapes.sources.names import (
    ANNOTATIONS,
    IDS_SUFFIX,
    IMAGE_FOLDER,
    TEST_SPLIT,
    image_name,
)

__all__ = [
    "DEFAULT_PARTITIONS",
    "PngSource",
    "find_cities",
    "find_sources",
    "find_splits",
    "parse_partitions",
]

# Number of shards of each split: 8 + 4 as in the paper.
DEFAULT_PARTITIONS = {"train": 8, "val": 4, "train_extra": 16, TEST_SPLIT: 4}
_FOLDERS = {**ANNOTATIONS, TEST_SPLIT: "gtFine"}
_PNG = (".png",)


@dataclass(frozen=True)
class PngSource:
    """An image and its ``*_instanceIds.png``; either may turn out to be missing or damaged.

    Attributes:
        image_path: 8-bit RGB PNG.
        ids_path: PNG of instance ids, 16 bits as shipped, or 8; None where there is no annotation,
            and every pixel is void.
    """

    image_path: Path
    ids_path: Path | None

    @property
    def file_name(self) -> str:
        return self.image_path.name

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image, from the header of the file."""
        return read_header(self.image_path).size

    @property
    def fingerprint(self) -> str:
        return contents(*self._paths)

    @property
    def earlier_fingerprint(self) -> str:
        return file_sizes(*self._paths)

    @property
    def _paths(self) -> list[Path]:
        return [path for path in (self.image_path, self.ids_path) if path is not None]

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return read_png(self.image_path, RGB)

    def instance_ids(self) -> np.ndarray:
        """(H, W) instance ids."""
        if self.ids_path is None:
            return np.zeros(self.size, dtype=np.uint16)
        return read_png(self.ids_path, IDS)

    def problems(self, table: LabelTable) -> list[str]:
        """Everything that is wrong with the two files; the id map is decoded, the image is not."""
        found = []
        for path, kind in zip(self._paths, (RGB, IDS), strict=False):
            try:
                check_png(path, kind)
            except PngError as error:
                there = path.exists() or path.is_symlink()
                found.append(str(error) + ("" if there else missing_file(path)))
        if self.ids_path is not None and not found:
            ids_problems = check_ids(self.instance_ids(), self.size, table)
            found += [f"{self.ids_path}: {problem}" for problem in ids_problems]
        return found


def find_sources(
    root: str | Path, split: str, *, cities: Collection[str] = (), limit: int | None = None
) -> list[PngSource]:
    """The annotated images of a split, sorted by city, sequence and frame.

    Looks for ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``*_instanceIds.png`` in the same
    place under ``gtFine`` (train_extra: ``gtCoarse``). Where one of the two is missing, the source
    is listed all the same, and says so when it is checked. The test split, whose labels are not
    public, may have no id maps at all: its images are then void as a whole.

    Args:
        root: the folder of leftImg8bit.
        split: "train", "val", "train_extra" or "test".
        cities: only these; empty for all.
        limit: only the first so many.

    Raises:
        SourceError: another split, or no images or no id maps at all.
    """
    root = Path(root)
    check_limit(limit)
    annotation = _annotation_folder(split)
    image_end, ids_end = f"_{IMAGE_FOLDER}", f"_{annotation}{Path(IDS_SUFFIX).stem}"
    images, maps = (
        by_name(list_files(root / kind / split, "*/*", end, _PNG), _scene)
        for kind, end in ((IMAGE_FOLDER, image_end), (annotation, ids_end))
    )
    unlabelled = split == TEST_SPLIT and not maps
    for kind, end, found in ((IMAGE_FOLDER, image_end, images), (annotation, ids_end, maps)):
        if not found and not (kind == annotation and unlabelled):
            raise SourceError(_nothing(root, f"{kind}/{split}", end, annotation))
    scenes = {*images, *maps}  # city, {city}_{sequence}_{frame}
    chosen = sorted(scene for scene in scenes if not cities or scene[0] in cities)
    if not chosen:
        raise SourceError(
            f"{root}: no images of {', '.join(cities)} in {split}; leave the split out"
        )
    places = root / IMAGE_FOLDER / split, root / annotation / split
    sources = []
    for city, stem in chosen[:limit]:
        image = images.get((city, stem), places[0] / city / f"{stem}{image_end}.png")
        ids = maps.get((city, stem), places[1] / city / f"{stem}{ids_end}.png")
        sources.append(PngSource(image, None if unlabelled else ids))
    return sources


def _scene(path: Path) -> tuple[str, str]:
    """City, and {city}_{sequence}_{frame}."""
    return path.parent.name, image_name(path.name)


def _nothing(root: Path, place: str, end: str, annotation: str) -> str:
    """Why nothing was found: the wrong folder, or pictures of another kind."""
    others = other_pictures(root / place, "*/*", end, _PNG)
    if others:
        return (
            f"{root}: {place} has {others[0].suffix} files ({others[0].name}, ...); images and id "
            "maps of this layout are PNGs: convert them, keeping their names"
        )
    return (
        f"{root}: no {place}/*/*{end}.png; expected the Cityscapes root with {IMAGE_FOLDER}/ and "
        f"{annotation}/ (see datasets/README.md)"
    )


def find_cities(root: str | Path, split: str) -> list[str]:
    """Names of the cities of a split."""
    root = Path(root)
    folders = [root / kind / split for kind in (IMAGE_FOLDER, _annotation_folder(split))]
    return sorted(
        {
            city.name
            for folder in folders
            for city in folder.glob("*")
            if city.is_dir() and not city.name.startswith(".")
        }
    )


def find_splits(
    root: str | Path,
    splits: Sequence[str],
    *,
    cities: Collection[str] = (),
    limit: int | None = None,
) -> dict[str, list[PngSource]]:
    """The sources of several splits; see `find_sources`.

    Raises:
        SourceError: also for a city that none of the splits has.
    """
    known = sorted({city for split in splits for city in find_cities(root, split)})
    unknown = [city for city in cities if city not in known]
    if unknown and known:
        nearest = {n: None for c in unknown for n in difflib.get_close_matches(c, known)}
        raise SourceError(
            f"{root}: no city {', '.join(unknown)} in {', '.join(splits)}; "
            + (f"did you mean {', '.join(nearest)}?" if nearest else f"it has {', '.join(known)}")
        )
    return {split: find_sources(root, split, cities=cities, limit=limit) for split in splits}


def parse_partitions(
    arguments: Sequence[str], defaults: Mapping[str, int] = DEFAULT_PARTITIONS
) -> dict[str, int]:
    """Split -> number of shards, from texts "SPLIT=N"; that of `defaults` for the others.

    Raises:
        SourceError: an unknown split, or not a number from 1.
    """
    partitions = dict(defaults)
    for argument in arguments:
        split, _, number = argument.partition("=")
        if split not in partitions or not number.isdecimal() or int(number) < 1:
            raise SourceError(
                f"partitions {argument!r}; give SPLIT=N with N from 1 and a split of "
                f"{', '.join(partitions)}"
            )
        partitions[split] = int(number)
    return partitions


def _annotation_folder(split: str) -> str:
    if split not in _FOLDERS:
        raise SourceError(f"split {split!r}; Cityscapes has {', '.join(_FOLDERS)}")
    return _FOLDERS[split]
