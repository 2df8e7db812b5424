"""Reading shards: a file or a folder of them as one sequence of records.

What stands in a file, and how it is read, is in `d2_cityscapes.shards.file`; the folder has an
``index.json`` that lists its files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from d2_cityscapes.labels import CITYSCAPES, LABEL_TABLES, LabelTable
from d2_cityscapes.labels.instances import InstanceTable
from d2_cityscapes.labels.table import LabelTableError
from d2_cityscapes.labels.table_file import read_table
from d2_cityscapes.shards.file import PREPARE, ShardError, ShardFile
from d2_cityscapes.shards.schema import check_index

__all__ = [
    "INDEX_NAME",
    "TABLE_NAME",
    "Record",
    "ShardError",
    "ShardReader",
    "folder_table",
    "open_shard",
    "read_index",
    "select_shards",
]

INDEX_NAME = "index.json"
TABLE_NAME = "classes.yaml"  # beside it, for classes of one's own
_LARGEST_INDEX = 1 << 28  # bytes


@dataclass(frozen=True)
class Record:
    """One image with its annotations; the arrays are the caller's own.

    Attributes:
        image: (3, H, W) uint8, RGB.
        instance_ids: (H, W) int32, in the encoding of `d2_cityscapes.labels`.
        file_name: base name of the source image.
        instances: table of the thing segments; its columns are also attributes of the record.
    """

    image: torch.Tensor
    instance_ids: torch.Tensor
    file_name: str
    instances: InstanceTable

    @property
    def ids(self) -> np.ndarray:
        return self.instances.ids

    @property
    def classes(self) -> np.ndarray:
        return self.instances.classes

    @property
    def boxes(self) -> np.ndarray:
        return self.instances.boxes

    @property
    def areas(self) -> np.ndarray:
        return self.instances.areas

    @property
    def crowd(self) -> np.ndarray:
        return self.instances.crowd


class ShardReader:
    """The records of one shard file, or of all (or some) shards of a folder in order.

    Nothing is opened before it is used. A reader can be pickled to worker processes and used on
    both sides of a fork.

    Args:
        path: a ``.safetensors`` shard, or a folder with an ``index.json``.
        split: only this split of a folder, e.g. "val".
        partitions: only these partitions, numbered from 1.
        table: the classes that the shards must have been made with.

    Raises:
        ShardError: from the constructor, for a folder without index or without the shards asked
            for; from any access, for a file that is missing, truncated or malformed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        partitions: Sequence[int] | None = None,
        table: LabelTable = CITYSCAPES,
    ) -> None:
        path = Path(path)
        if path.suffix == ".safetensors":
            files = [path]
        else:
            files = select_shards(path, split=split, partitions=partitions)
        self._shards = [ShardFile(file, table) for file in files]

    def __len__(self) -> int:
        return sum(len(shard.file_names) for shard in self._shards)

    def __getitem__(self, index: int) -> Record:
        shard, row = self._locate(index)
        return Record(
            shard.image(row), shard.instance_ids(row), shard.file_names[row], shard.table(row)
        )

    @property
    def file_names(self) -> list[str]:
        """Base names of the source images, in record order."""
        return [name for shard in self._shards for name in shard.file_names]

    def image(self, index: int) -> torch.Tensor:
        """(3, H, W) uint8 RGB image of a record alone."""
        shard, row = self._locate(index)
        return shard.image(row)

    def instance_ids(self, index: int) -> torch.Tensor:
        """(H, W) int32 instance-id map of a record alone."""
        shard, row = self._locate(index)
        return shard.instance_ids(row)

    def id_map(self, index: int) -> np.ndarray:
        """(H, W) uint16 instance-id map of a record alone, as it is stored."""
        shard, row = self._locate(index)
        return shard.id_map(row)

    def table(self, index: int) -> InstanceTable:
        """Table of a record's thing segments; no pixel is read."""
        shard, row = self._locate(index)
        return shard.table(row)

    def image_size(self, index: int) -> tuple[int, int]:
        """(H, W) of a record's image."""
        shard, row = self._locate(index)
        return shard.image_size(row)

    def source(self, index: int) -> tuple[Path, int]:
        """Shard file of a record and its row in it."""
        shard, row = self._locate(index)
        return shard.path, row

    def _locate(self, index: int) -> tuple[ShardFile, int]:
        row = index + len(self) if index < 0 else index
        if row >= 0:
            for shard in self._shards:
                if row < len(shard.file_names):
                    return shard, row
                row -= len(shard.file_names)
        raise IndexError(f"record {index} of {len(self)}")


@functools.lru_cache(maxsize=256)
def open_shard(path: str | Path, table: LabelTable = CITYSCAPES) -> ShardReader:
    """The reader of one shard file, the same object at every call in a process."""
    return ShardReader(path, table=table)


def read_index(folder: Path) -> dict[str, Any]:
    """The parsed ``index.json`` of a shard folder.

    Raises:
        ShardError: there is none, it cannot be read, it holds what no index does, or two images of
            a split have one name.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        raise ShardError(f"{folder}: no {INDEX_NAME} here; {PREPARE} --output {folder}")
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"{path.stat().st_size} bytes; none is that long")
        return check_index(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError, RecursionError) as error:
        raise ShardError(f"{path}: not a shard index ({error}); {PREPARE} again") from error


def folder_table(folder: Path) -> LabelTable:
    """The label table that the shards of a folder were made with.

    Raises:
        ShardError: no index, or a table of somebody's own whose classes.yaml is lost, damaged or
            another one.
    """
    index = read_index(folder)
    name = index.get("label_table", CITYSCAPES.name)
    made_with = index.get("label_table_hash")
    for table in LABEL_TABLES.values():
        if table.hash == made_with or (made_with is None and table.name == name):
            return table
    path = folder / TABLE_NAME
    if not path.is_file():
        raise ShardError(
            f"{folder}: made with the label table {name}, and its {TABLE_NAME} is missing; copy it "
            "here from where the shards come from, or read them in Python with their own table"
        )
    try:
        found = read_table(path)
    except LabelTableError as error:
        raise ShardError(str(error)) from error
    if found.hash != made_with:
        raise ShardError(
            f"{path}: not the classes that these shards were made with; give it back its names, "
            f"ids, thing and void, or {PREPARE} with another folder"
        )
    return found


def select_shards(
    folder: Path, *, split: str | None = None, partitions: Sequence[int] | None = None
) -> list[Path]:
    """Files of a shard folder that belong to a split and its partitions, in order.

    Raises:
        ShardError: no such shards in the index, not all of a split where all are asked for, or a
            listed file is missing or of another size.
    """
    entries = [s for s in read_index(folder)["shards"] if split in (None, s["split"])]
    if not entries:
        raise ShardError(f"{folder}: no shards of split {split!r}; {PREPARE} --splits {split}")
    for name in {s["split"] for s in entries} if partitions is None else ():
        found = [s for s in entries if s["split"] == name]
        if {s["partition"] for s in found} != {*range(1, found[0]["partitions"] + 1)}:
            raise ShardError(
                f"{folder}: {len(found)} of {found[0]['partitions']} shards of split {name!r}; "
                f"packing did not finish: {PREPARE} again"
            )
    if partitions is not None:
        missing = sorted(set(partitions) - {s["partition"] for s in entries})
        if missing:
            raise ShardError(
                f"{folder}: no partition {', '.join(map(str, missing))} of split {split!r} "
                f"(it has {len(entries)}); {PREPARE} on more images or name other partitions"
            )
        entries = [s for s in entries if s["partition"] in partitions]
    entries.sort(key=lambda s: (s["split"], s["partition"]))
    for entry in entries:
        path = folder / entry["file"]
        if not path.is_file():
            raise ShardError(f"{path}: missing shard, listed in {INDEX_NAME}; {PREPARE} again")
        if path.stat().st_size != entry["size"]:
            raise ShardError(
                f"{path}: {path.stat().st_size} bytes, {INDEX_NAME} says {entry['size']}; "
                f"delete it and {PREPARE} again"
            )
    return [folder / entry["file"] for entry in entries]
