"""What can be packed into shards, and everything that is wrong with it, before it is packed."""

from __future__ import annotations

import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from d2_cityscapes.errors import D2CityscapesError, first_few
from d2_cityscapes.files import is_plain_name
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import MOST_PIXELS
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.names import image_name
from d2_cityscapes.worker_pool import map_in_order

__all__ = [
    "Source",
    "check_ids",
    "check_limit",
    "check_names",
    "check_sources",
    "contents",
    "file_sizes",
    "own_size",
]

logger = logging.getLogger(__name__)

_TAIL = 1024  # bytes

Size = tuple[int, int]  # (H, W)


class Source(Protocol):
    """One annotated image to be packed; must be picklable to reach worker processes.

    A source of files also has ``image_path``, and ``problems(table) -> list[str]``: everything that
    is wrong with the files, each with its path, found without decoding the image. An unreadable
    file is a `D2CityscapesError`. Where a part of an annotation is passed over, as the dataset's
    own tools do, or shows nowhere, ``skipped() -> Counter[str]`` says what, e.g. "objects of fewer
    than 2 points".

    Where images of a split differ in size, every source also has a ``canvas: Size``, the same for
    all, at least as large as the image: its place in a shard, which the image takes from the top
    left. Without one, the canvas is the size of the image.
    """

    @property
    def file_name(self) -> str:
        """Base name, unique within a split, with another ending too."""

    @property
    def size(self) -> Size:
        """(H, W) of the image."""

    @property
    def fingerprint(self) -> str:
        """Changes when the source changes; cheap to compute.

        Where it has changed its form, ``earlier_fingerprint`` is the one that older shards hold.
        """

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def instance_ids(self) -> np.ndarray:
        """(H, W) integers in the encoding of `d2_cityscapes.labels`."""


class _Finding(NamedTuple):
    where: str
    canvas: Size | None  # None: unknown
    problems: list[str]
    skipped: Counter[str]


def check_sources(
    splits: Mapping[str, Sequence[Source]],
    pool: ProcessPoolExecutor | None,
    *,
    table: LabelTable,
    packed_sizes: Mapping[str, Iterable[Size]],
    progress: bool = False,
) -> dict[str, Size]:
    """Look for everything that is wrong with sources, before any is packed.

    Images are not decoded, id maps are.

    Args:
        splits: split -> the sources to check.
        pool: worker processes.
        table: the classes.
        packed_sizes: split -> canvases of its images that are packed already.
        progress: show a progress bar.

    Returns:
        Split -> canvas of its images.

    Raises:
        SourceError: all problems: in its line where they are few, else in its details.
    """
    sizes, problems = {}, []
    skipped: Counter[str] = Counter()
    look = partial(_look, table=table)
    total = sum(map(len, splits.values()))
    with tqdm(total=total, desc="checking", unit="image", disable=not (progress and total)) as bar:
        for split, sources in splits.items():
            findings = []
            for finding in map_in_order(pool, look, sources):
                findings.append(finding)
                bar.update()
            counts = Counter(packed_sizes[split])
            counts.update(f.canvas for f in findings if f.canvas is not None)
            common = counts.most_common(1)[0][0] if counts else None
            for finding in findings:
                problems += finding.problems
                skipped += finding.skipped
                if finding.canvas not in (None, common):
                    problems.append(
                        f"{finding.where}: {finding.canvas} (H, W), other images of {split} are "
                        f"{common}; a split has one size"
                    )
            if common is not None:
                sizes[split] = common
    if problems:
        raise SourceError.of_many(problems, "nothing was written; mend them or leave them out")
    if skipped:
        listed = ", ".join(f"{number} {what}" for what, number in sorted(skipped.items()))
        logger.warning("passed over: %s", listed)
    return sizes


def check_names(splits: Mapping[str, Sequence[Source]]) -> None:
    """Refuse names that cannot tell the images of a split apart, or that are no names.

    Predictions, scores and submissions go by the name of an image, without its ending.

    Raises:
        SourceError: all of them.
    """
    problems = []
    for split, sources in splits.items():
        first: dict[str, Source] = {}
        for source in sources:
            name = image_name(source.file_name)
            other = first.setdefault(name, source)
            if not is_plain_name(source.file_name):
                problems.append(f"{source.file_name!r} of {split} is not the name of a file")
            elif other is not source:
                both = f"{_where(other)} and {_where(source)}"
                problems.append(f"{split} has two images called {name}: {both}")
    if problems:
        raise SourceError.of_many(problems, "nothing was written; rename them")


def check_limit(limit: int | None) -> None:
    """Refuse a number of images, None for all, that is not from 1."""
    if limit is not None and limit < 1:
        raise SourceError(f"limit {limit}; give 1 or more")


def file_sizes(*paths: Path) -> str:
    """The bytes of a source's files, "6+4": its fingerprint, or the beginning of it."""
    try:
        return "+".join(str(path.stat().st_size) for path in paths)
    except OSError as error:
        raise SourceError(f"{error.filename}: cannot be read ({error.strerror})") from error


def contents(picture: Path, *annotations: Path) -> str:
    """What `file_sizes` gives, and checksums: the fingerprint of a source or the beginning of it.

    An annotation, some ten kB, is read as a whole: labels are corrected in place, and their maps
    often keep their size. Times of files are not looked at, which copies and downloads change. Of
    a picture its last kB is read, where the PNG format keeps a checksum of all pixels.
    """
    sizes = file_sizes(picture, *annotations)
    try:
        with open(picture, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            found = [file.read()]
        found += [path.read_bytes() for path in annotations]
    except OSError as error:
        where = error.filename or picture
        raise SourceError(f"{where}: cannot be read ({error.strerror})") from error
    return " ".join([sizes, *(f"{zlib.crc32(content):08x}" for content in found)])


def own_size(source: Source, canvas: Size) -> Size:
    """(H, W) that the image of a source has on the canvas of its split."""
    return source.size if hasattr(source, "canvas") else canvas


def check_ids(ids: np.ndarray, size: Size, table: LabelTable) -> list[str]:
    """What is wrong with an instance-id map.

    Args:
        ids: the map.
        size: (H, W) of its image.
        table: the classes.
    """
    if ids.shape != size:
        return [f"id map of {ids.shape}, image of {size} (H, W)"]
    if not np.issubdtype(ids.dtype, np.integer):
        return [f"id map of {ids.dtype}, expected integers"]
    unknown = table.unknown_ids(ids)
    if not unknown:
        return []
    return [f"ids {first_few(unknown, 5)} are not in the {table.name} label table"]


def _where(source: Source) -> str:
    return str(getattr(source, "image_path", source.file_name))


def _look(source: Source, *, table: LabelTable) -> _Finding:
    where = _where(source)
    skipped: Counter[str] = Counter()
    try:
        if hasattr(source, "problems"):
            problems = source.problems(table)
        else:
            found = check_ids(source.instance_ids(), source.size, table)
            problems = [f"{where}: {problem}" for problem in found]
        if not problems and hasattr(source, "skipped"):
            skipped = source.skipped()
    except D2CityscapesError as error:
        problems = [str(error)]
    try:
        size = source.size
        canvas = getattr(source, "canvas", size)
        if size[0] > canvas[0] or size[1] > canvas[1]:
            problems.append(f"{where}: {size} (H, W) is larger than its canvas, {canvas}")
        if canvas[0] * canvas[1] > MOST_PIXELS:
            problems.append(f"{where}: takes {canvas} (H, W), more than {MOST_PIXELS} pixels")
        return _Finding(where, canvas, problems, skipped)
    except D2CityscapesError:  # an unreadable image, which is among the problems
        return _Finding(where, None, problems, skipped)
