"""What can be packed into shards, and everything that is wrong with it, before it is packed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from d2_cityscapes.errors import D2CityscapesError, first_few
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.worker_pool import map_in_order

__all__ = ["Source", "check_ids", "check_limit", "check_sources", "file_sizes", "own_size"]

Size = tuple[int, int]  # (H, W)


class Source(Protocol):
    """One annotated image to be packed; must be picklable to reach worker processes.

    A source of files also has ``image_path``, and ``problems(table) -> list[str]``: everything that
    is wrong with the files, each with its path, found without decoding the image. An unreadable
    file is a `D2CityscapesError`.

    Where images of a split differ in size, every source also has a ``canvas: Size``, the same for
    all, at least as large as the image: its place in a shard, which the image takes from the top
    left. Without one, the canvas is the size of the image.
    """

    @property
    def file_name(self) -> str:
        """Base name, unique within a split."""

    @property
    def size(self) -> Size:
        """(H, W) of the image."""

    @property
    def fingerprint(self) -> str:
        """Changes when the source changes; cheap to compute."""

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def instance_ids(self) -> np.ndarray:
        """(H, W) integers in the encoding of `d2_cityscapes.labels`."""


class _Finding(NamedTuple):
    where: str
    canvas: Size | None  # None: unknown
    problems: list[str]


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
                if finding.canvas not in (None, common):
                    problems.append(
                        f"{finding.where}: {finding.canvas} (H, W), other images of {split} are "
                        f"{common}; a split has one size"
                    )
            if common is not None:
                sizes[split] = common
    if problems:
        raise SourceError.of_many(problems, "nothing was written; mend them or leave them out")
    return sizes


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


def _look(source: Source, *, table: LabelTable) -> _Finding:
    where = str(getattr(source, "image_path", source.file_name))
    try:
        if hasattr(source, "problems"):
            problems = source.problems(table)
        else:
            found = check_ids(source.instance_ids(), source.size, table)
            problems = [f"{where}: {problem}" for problem in found]
    except D2CityscapesError as error:
        problems = [str(error)]
    try:
        size = source.size
        canvas = getattr(source, "canvas", size)
        if size[0] > canvas[0] or size[1] > canvas[1]:
            problems.append(f"{where}: {size} (H, W) is larger than its canvas, {canvas}")
        return _Finding(where, canvas, problems)
    except D2CityscapesError:  # an unreadable image, which is among the problems
        return _Finding(where, None, problems)
