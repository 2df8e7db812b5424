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
from d2_cityscapes.shards.reader import (
    INDEX_NAME,
    TABLE_NAME,
    ShardReader,
    folder_table,
    read_index,
)
from d2_cityscapes.synthetic.dataset import MARKER

__all__ = ["dataset_findings"]

_TOPIC = "datasets"
_OFFICIAL = {"train": 2975, "val": 500, "test": 1525, "train_extra": 19998}  # of Cityscapes
_FOLDERS = ("cityscapes_shards", "idd_shards", "vistas_shards")
_PICTURES, _LABELS = "leftImg8bit", ("gtFine", "gtCoarse")
# that its pictures and its labels come in
_ZIP = ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip")
_ZIPS = {"train_extra": ("leftImg8bit_trainextra.zip", "gtCoarse.zip")}
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
    export = "export DETECTRON2_DATASETS=DIR, the folder that cityscapes_shards is in, or will be"
    if not folder.is_dir():
        what = "a file, no folder" if folder.exists() else "no such folder"
        yield Finding(_TOPIC, "folder", f"{folder}: {what}{said}", export)
        return
    folder = folder.absolute()
    if (folder / INDEX_NAME).is_file():
        remedy = f"export DETECTRON2_DATASETS={folder.parent}, one folder above"
        yield Finding(_TOPIC, "folder", f"{folder}: is itself a folder of shards", remedy)
        return
    yield Finding(_TOPIC, "folder", f"{folder}{said}")
    files = [path for name in (INDEX_NAME, TABLE_NAME) for path in folder.glob(f"*_shards/{name}")]
    names = dict.fromkeys([*_FOLDERS, *sorted(path.parent.name for path in files)])
    shards = [folder / name for name in names if (folder / name).is_dir()]
    trees = [path for path in (folder, folder / "cityscapes") if (path / _PICTURES).is_dir()]
    for path in shards:
        yield from _shard_findings(path)
    for path in trees:
        yield from _tree_findings(path)
    if shards:
        return
    if not os.access(folder, os.W_OK):
        yield Finding(_TOPIC, "shards", "none, and the folder cannot be written to", export)
        return
    prepare = f"d2c prepare --cityscapes {[*trees, 'DIR'][0]} --output {folder / _FOLDERS[0]}"
    scenes = "" if trees else " (d2c scenes makes up a DIR to try with)"
    yield Finding(_TOPIC, "shards", "none", prepare + scenes)


def _shard_findings(folder: Path) -> Iterator[Finding]:
    """Of each split, or what keeps it from being read; and how fast the first one reads."""
    name = folder.name
    try:
        entries = read_index(folder)["shards"]
        table = folder_table(folder)
    except ShardError as error:
        yield Finding(_TOPIC, name, str(error), _again(folder))
        return
    readers = {}
    for split in dict.fromkeys(entry["split"] for entry in entries):
        try:
            readers[split] = reader = ShardReader(folder, split=split, table=table)
            official = _OFFICIAL.get(split) if table is CITYSCAPES else None
            yield Finding(_TOPIC, f"{name}, {split}", _counted(len(reader), official))
        except ShardError as error:
            files = [(folder / e["file"], e["size"]) for e in entries if e["split"] == split]
            damaged = sum(not path.is_file() or path.stat().st_size != n for path, n in files)
            count = f"{damaged} of {len(files)} shards missing or cut short: " * bool(damaged)
            yield Finding(_TOPIC, f"{name}, {split}", f"{count}{error}", _again(folder))
    for reader in list(readers.values())[:1]:
        yield _speed(name, reader)


def _again(folder: Path) -> str:
    return (
        f"copy {folder} once more, or run the d2c prepare again that made it, with --output "
        f"{folder}: it makes what is missing"
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
    """Of a Cityscapes tree: pictures of each split, and whether each has its labels.

    Of train_extra a part is common; of the others it is a download that is not whole.
    """
    made_up = (tree / MARKER).is_file()
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
        lacking = sorted(pictures - labelled) if split != "test" else []
        missing = 0
        if split != "train_extra":
            missing = len(labelled - pictures) if made_up else max(official - len(pictures), 0)
        of_pictures, of_labels = _ZIPS.get(split, _ZIP)
        remedies = [f"{missing} pictures are missing: unpack {of_pictures}"] * bool(missing)
        remedies += [
            f"{len(lacking)} pictures have no labels, {name} first: unpack {of_labels}"
            for name in lacking[:1]
        ]
        again = f" in {tree} again" + ", or copy it once more" * bool(missing)
        yield Finding(
            _TOPIC,
            f"{tree.name or tree}, {split}",
            _counted(len(pictures), official),
            f"{'; '.join(remedies)}{again}" if remedies else "",
        )
