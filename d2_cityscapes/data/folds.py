"""Folds of a data set of shards, as data sets: its partitions dealt to K folds, round by round.

Partition i (from 0) belongs to fold ``i % K + 1``. NAME_fold_1_of_3 are the pictures of the first
fold, to test on; NAME_without_fold_1_of_3 are all others, to train on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.shards.file import PREPARE, ShardError

__all__ = ["deal", "fold_name", "others_name", "register_folds"]

_NAME = re.compile(r"(.+?)_(without_fold|fold)_([1-9]\d{0,3})_of_([1-9]\d{0,3})")

_registered: set[str] = set()


def fold_name(dataset: str, fold: int, folds: int) -> str:
    """The data set of a fold; ``fold`` counts from 1."""
    return f"{dataset}_fold_{fold}_of_{folds}"


def others_name(dataset: str, fold: int, folds: int) -> str:
    """The data set of all other folds."""
    return f"{dataset}_without_fold_{fold}_of_{folds}"


def register_folds(names: Iterable[str]) -> None:
    """Register those of the names that are folds of a registered data set, with its classes.

    No shard is opened. Names that somebody else has registered stay theirs.
    """
    for name in names:
        match = _NAME.fullmatch(name)
        if not match or match[1] not in DatasetCatalog.list():
            continue
        dataset, fold, folds = match[1], int(match[3]), int(match[4])
        if not 1 <= fold <= folds or folds < 2:
            continue
        if name in DatasetCatalog.list():
            if name not in _registered:
                continue
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        _registered.add(name)
        inside = match[2] == "fold"
        DatasetCatalog.register(name, partial(_load, dataset, fold, folds, inside=inside))
        about = MetadataCatalog.get(dataset).as_dict()
        MetadataCatalog.get(name).set(**{k: v for k, v in about.items() if k != "name"})


def deal(dataset: str, folds: int) -> list[dict[str, list[dict]]]:
    """For each fold the partitions that it got: shard file -> its dataset dicts.

    Args:
        dataset: the name of a registered data set of shards.
        folds: from 2 on.

    Raises:
        ShardError: fewer than 2 folds, or more than there are partitions with pictures.
    """
    if folds < 2:
        raise ShardError(f"{folds} folds: there is nothing to train on; use 2 or more")
    partitions: dict[str, list[dict]] = {}
    for record in DatasetCatalog.get(dataset):
        if "shard" not in record:
            raise ShardError(f"{dataset}: not a data set of shards, which has no partitions")
        partitions.setdefault(record["shard"], []).append(record)
    if folds > len(partitions):
        raise ShardError(
            f"{folds} folds: {dataset} has {len(partitions)} partitions with pictures; use as many "
            f"folds at most, or {PREPARE} --partitions SPLIT={folds} into another folder"
        )
    dealt = list(partitions.items())
    return [dict(dealt[i::folds]) for i in range(folds)]


def _load(dataset: str, fold: int, folds: int, *, inside: bool) -> list[dict]:
    dealt = enumerate(deal(dataset, folds), 1)
    return [
        record
        for number, partitions in dealt
        if (number == fold) is inside
        for records in partitions.values()
        for record in records
    ]
