"""Datasets that are known by their folder alone: ``NAME_shards`` in $DETECTRON2_DATASETS.

The folder brings its classes along, so that its splits are registered as ``NAME_shards_train``,
``NAME_shards_val`` and the like, without a line of Python. Importing this module registers those
that are there; `register_shard_folders` looks again.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data.register import datasets_root, register_cityscapes_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LABEL_TABLES, LabelTable
from d2_cityscapes.labels.table_file import read_table
from d2_cityscapes.shards.file import ShardError
from d2_cityscapes.shards.reader import INDEX_NAME, TABLE_NAME, folder_table

__all__ = ["register_shard_folders"]

SUFFIX = "_shards"
_BUILT_IN = {f"{name}{SUFFIX}" for name in LABEL_TABLES}
_SHARD = re.compile(r"(.+)_\d+of\d+\.safetensors")
_EXPECTED = ("train", "val")  # whether or not they are packed; then that is what the error says

_registered: set[str] = set()


def register_shard_folders() -> None:
    """Register the splits of every shard folder in $DETECTRON2_DATASETS that is not built in.

    Those of an earlier call that are gone are forgotten. No shard is opened; a folder that is
    broken is an error, in one line, where one of its datasets is used. Names that somebody else has
    registered stay theirs.
    """
    for name in _registered & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _registered.clear()
    found: dict[Path, set[str]] = {}
    with contextlib.suppress(OSError):  # no such folder, or nobody may look into it
        for path in datasets_root().glob(f"*{SUFFIX}/*"):
            splits = found.setdefault(path.parent, set())
            if match := _SHARD.fullmatch(path.name):
                splits.add(match[1])
            elif path.name in (INDEX_NAME, TABLE_NAME):
                splits.update(_EXPECTED)
    for folder, splits in sorted(found.items()):
        if folder.name not in _BUILT_IN:
            _register(folder, sorted(splits))


def _register(folder: Path, splits: Sequence[str]) -> None:
    problem, table = "", None
    try:
        table = _table(folder)
    except (D2CityscapesError, OSError) as error:
        problem = str(error)
    for split in splits:
        name = f"{folder.name}_{split}"
        if name in DatasetCatalog.list():
            continue
        _registered.add(name)
        if table is not None:
            register_cityscapes_shards(name, folder, split=split, table=table, labelled=True)
        else:
            DatasetCatalog.register(name, partial(_refuse, problem))
            MetadataCatalog.get(name).set(broken=problem)


def _table(folder: Path) -> LabelTable:
    """From the file of the classes alone, where there is one: every shard is held against it."""
    path = folder / TABLE_NAME
    return read_table(path) if path.is_file() else folder_table(folder)


def _refuse(problem: str) -> list[dict]:
    raise ShardError(problem)


register_shard_folders()
