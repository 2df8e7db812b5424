"""Datasets that are known by their folder alone: ``NAME_shards`` in $DETECTRON2_DATASETS.

The folder brings its classes along, so that its splits are registered as ``NAME_shards_train``,
``NAME_shards_val`` and the like, without a line of Python. Importing this module registers those
that are there; `register_shard_folders` looks again.
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import expanded
from d2_cityscapes.labels import LABEL_TABLES, LabelTable
from d2_cityscapes.labels.table_file import read_table
from d2_cityscapes.shards.file import ShardError
from d2_cityscapes.shards.reader import INDEX_NAME, TABLE_NAME, folder_table

__all__ = ["register_shard_folders"]

SUFFIX = "_shards"
_BUILT_IN = {f"{name}{SUFFIX}" for name in LABEL_TABLES}
_SHARD = re.compile(r"(.+)_\d+of\d+\.safetensors")
_EXPECTED = ("train", "val")  # where a folder cannot say its splits

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
    root = Path(expanded(os.getenv("DETECTRON2_DATASETS", "datasets")))
    try:
        folders = sorted(root.glob(f"*{SUFFIX}"))
    except OSError:
        return
    for folder in folders:
        if folder.name not in _BUILT_IN and _has_shards(folder):
            _register(folder)


def _has_shards(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (INDEX_NAME, TABLE_NAME))


def _register(folder: Path) -> None:
    splits: tuple[str, ...] = ()
    problem, table = "", None
    try:
        found = (_SHARD.fullmatch(path.name) for path in folder.iterdir())
        splits = tuple(sorted({match[1] for match in found if match}))
        table = _table(folder)
    except (D2CityscapesError, OSError) as error:
        problem = str(error)
    for split in splits or _EXPECTED:
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
