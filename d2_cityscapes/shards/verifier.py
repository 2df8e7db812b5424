"""Comparing shards with their checksums and, record by record, with the images they came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_sha256
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.labels.instances import COLUMNS, find_instances
from d2_cityscapes.shards.file import PREPARE, ShardError, ShardFile
from d2_cityscapes.shards.reader import INDEX_NAME, read_index
from d2_cityscapes.sources.check import Source
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = ["verify_shards"]


def verify_shards(
    sources: Sequence[Source],
    output: str | Path,
    *,
    split: str,
    workers: int = 1,
    table: LabelTable = CITYSCAPES,
    progress: bool = False,
) -> None:
    """Read every byte of a split's shards and every source again, and compare.

    A shard that differs from its checksum is not compared image by image.

    Args:
        sources: the images that the shards were made from.
        output: folder of the shards.
        split: the split.
        workers: processes that read and decode.
        table: the classes.
        progress: show progress bars.

    Raises:
        ShardError: all differences, naming shards and images.
    """
    output = Path(output)
    entries = [entry for entry in read_index(output)["shards"] if entry["split"] == split]
    entries.sort(key=lambda entry: entry["partition"])
    packed = [(entry, row) for entry in entries for row in range(len(entry["images"]))]
    names = [entry["images"][row] for entry, row in packed]
    if names != [source.file_name for source in sources]:
        raise ShardError(
            f"{output}: the shards of split {split!r} hold other images than the source; delete "
            "them or verify them against the images they were made from"
        )
    problems: list[str] = []
    with worker_pool(workers) as pool:
        whole = set()
        found = map_in_order(pool, partial(_file_problems, output), entries)
        bar = partial(tqdm, disable=not progress)
        for entry, problem in zip(
            entries, bar(found, f"checksums {split}", len(entries), unit="shard"), strict=True
        ):
            problems += problem
            if not problem:
                whole.add(entry["file"])
        compared = [
            (ShardFile(output / entry["file"], table), row, source)
            for (entry, row), source in zip(packed, sources, strict=True)
            if entry["file"] in whole
        ]
        found = map_in_order(pool, partial(_record_problems, table), compared)
        for problem in bar(found, f"verifying {split}", len(compared), unit="image"):
            problems += problem
    if problems:
        raise ShardError.of_many(problems, f"delete these shards and {PREPARE} again")


def _file_problems(output: Path, entry: dict[str, Any]) -> list[str]:
    path = output / entry["file"]
    try:
        if file_sha256(path) == entry["sha256"]:
            return []
        return [f"{path}: SHA-256 differs from {INDEX_NAME}"]
    except OSError as error:
        return [f"{path}: {error.strerror}"]


def _record_problems(table: LabelTable, item: tuple[ShardFile, int, Source]) -> list[str]:
    shard, row, source = item
    try:
        ids, instances = source.instance_ids(), shard.table(row)
        expected = find_instances(ids, table)
        same = {
            "name": shard.file_names[row] == source.file_name,
            "image": np.array_equal(shard.image(row).numpy(), source.image().transpose(2, 0, 1)),
            "instance ids": np.array_equal(shard.instance_ids(row).numpy(), ids),
            "instance table": all(
                np.array_equal(getattr(instances, column), getattr(expected, column))
                for column in COLUMNS
            ),
        }
    except D2CityscapesError as error:
        return [str(error)]
    differing = [what for what, equal in same.items() if not equal]
    if not differing:
        return []
    return [f"{shard.path}: {source.file_name} differs from its source ({', '.join(differing)})"]
