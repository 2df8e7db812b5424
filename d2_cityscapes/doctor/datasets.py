"""The data below DETECTRON2_DATASETS: which there is, whether all of it, and how fast it reads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from d2_cityscapes.doctor.findings import Finding
from d2_cityscapes.files import expanded
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.file import ShardError
from d2_cityscapes.shards.reader import TABLE_NAME, ShardReader, folder_table, read_index

__all__ = ["dataset_findings"]

_TOPIC = "datasets"
_OFFICIAL = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}  # of Cityscapes
_FOLDERS = ("cityscapes_shards", "idd_shards", "vistas_shards")
_PICTURES, _LABELS = "leftImg8bit", ("gtFine", "gtCoarse")
_READ = 64  # records
_SLOW = 20  # records a second, of 1024 x 2048 px


def dataset_findings(root: str | None = None) -> Iterator[Finding]:
    """Of the shard folders and of the Cityscapes tree below a folder.

    Args:
        root: None for $DETECTRON2_DATASETS, or "datasets" as in Detectron2.
    """
    named = root or os.environ.get("DETECTRON2_DATASETS")
    folder = Path(expanded(named or "datasets"))
    said = "" if named else ", as DETECTRON2_DATASETS is unset"
    if not folder.is_dir():
        yield Finding(
            _TOPIC,
            "folder",
            f"{folder}: no such folder{said}",
            "export DETECTRON2_DATASETS=DIR, the folder that cityscapes_shards is in, or will be",
        )
        return
    yield Finding(_TOPIC, "folder", f"{folder.absolute()}{said}")
    own = sorted(path.parent.name for path in folder.glob(f"*_shards/{TABLE_NAME}"))
    names = dict.fromkeys([*_FOLDERS, *own])
    shards = [folder / name for name in names if (folder / name).is_dir()]
    trees = [path for path in (folder, folder / "cityscapes") if (path / _PICTURES).is_dir()]
    for path in shards:
        yield from _shard_findings(path)
    for path in trees:
        yield from _tree_findings(path)
    if not shards:
        tree = trees[0] if trees else "DIR"
        yield Finding(
            _TOPIC,
            "shards",
            "none",
            f"d2c prepare --cityscapes {tree} --output {folder / _FOLDERS[0]}"
            + ("" if trees else " (d2c scenes makes up a DIR to try with)"),
        )


def _shard_findings(folder: Path) -> Iterator[Finding]:
    """Of each split, or what keeps it from being read; and how fast the first one reads."""
    name = folder.name
    try:
        splits = dict.fromkeys(shard["split"] for shard in read_index(folder)["shards"])
        table = folder_table(folder)
    except ShardError as error:
        yield Finding(_TOPIC, name, str(error), _again(folder))
        return
    readers = {}
    for split in splits:
        try:
            readers[split] = reader = ShardReader(folder, split=split, table=table)
            official = _OFFICIAL.get(split) if table is CITYSCAPES else None
            yield Finding(_TOPIC, f"{name}, {split}", _counted(len(reader), official))
        except ShardError as error:
            yield Finding(_TOPIC, f"{name}, {split}", str(error), _again(folder))
    for reader in list(readers.values())[:1]:
        yield _speed(name, reader)


def _again(folder: Path) -> str:
    return (
        f"copy {folder} once more, or d2c prepare --cityscapes DIR --output {folder}, which makes "
        "what is missing"
    )


def _counted(count: int, official: int | None) -> str:
    if official is None or count == official:
        return f"{count} images" + " (all)" * (count == official)
    return f"{count} images (the official set has {official})"


def _speed(name: str, reader: ShardReader) -> Finding:
    numbers = range(min(_READ, len(reader)))
    started = time.perf_counter()
    for number in numbers:
        image = reader[number].image
    speed = len(numbers) / (time.perf_counter() - started)
    _, height, width = image.shape
    remedy = "slow: copy the shards to a local disk"
    return Finding(
        _TOPIC,
        f"{name}, reading",
        f"{speed:.0f} images of {height} x {width} px a second, one process",
        remedy * (speed < _SLOW),
    )


def _tree_findings(tree: Path) -> Iterator[Finding]:
    """Of a Cityscapes tree: pictures of each split, and whether each has its labels."""
    for split, official in _OFFICIAL.items():
        pictures = {
            path.name.removesuffix(f"_{_PICTURES}.png")
            for path in (tree / _PICTURES / split).glob(f"*/*_{_PICTURES}.png")
        }
        if not pictures:
            continue
        labelled = {
            path.name.removesuffix(f"_{kind}_instanceIds.png")
            for kind in _LABELS
            for path in (tree / kind / split).glob(f"*/*_{kind}_instanceIds.png")
        }
        lacking = sorted(pictures - labelled)
        remedy = ""
        if lacking and split != "test":
            remedy = (
                f"unpack gtFine_trainvaltest.zip (gtCoarse.zip for train_extra) in {tree} again: "
                f"{len(lacking)} pictures have no labels, {lacking[0]} first"
            )
        yield Finding(
            _TOPIC, f"{tree.name or tree}, {split}", _counted(len(pictures), official), remedy
        )
