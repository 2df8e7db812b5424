"""Shards as Detectron2 datasets. Importing this module registers the built-in ones."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from d2_cityscapes.errors import D2CityscapesError, nearest
from d2_cityscapes.files import expanded, file_sha256
from d2_cityscapes.labels import CITYSCAPES, IDD, VISTAS, VOID_TRAIN_ID, LabelTable
from d2_cityscapes.shards.file import PREPARE, ShardError
from d2_cityscapes.shards.reader import INDEX_NAME, ShardReader
from d2_cityscapes.sources.names import SPLITS, TEST_SPLIT, image_name

__all__ = [
    "BUILTIN_DATASETS",
    "OTHER_DATASETS",
    "TEST_DATASET",
    "datasets_root",
    "has_truth",
    "index_digests",
    "label_table_of",
    "load_shards",
    "not_registered",
    "register_cityscapes_shards",
    "shard_files",
]

# Partitions that have a name of their own, whether or not a folder has as many.
NAMED_PARTITIONS = 16
# Name -> arguments of `register_cityscapes_shards`. The roles keep the half of val for tuning apart
# from the one that final scores are reported on.
BUILTIN_DATASETS: dict[str, dict[str, Any]] = {
    **{f"cityscapes_shards_{split}": {"split": split} for split in SPLITS},
    "cityscapes_shards_val_select": {"split": "val", "half": 1},
    "cityscapes_shards_val_report": {"split": "val", "half": 2},
    **{
        f"cityscapes_shards_{split}_{k}": {"split": split, "partitions": (k,)}
        for split in SPLITS
        for k in range(1, NAMED_PARTITIONS + 1)
    },
}
# The images of the test server, whose labels nobody has: to write submissions for.
TEST_DATASET = f"cityscapes_shards_{TEST_SPLIT}"
# Name -> split and classes.
OTHER_DATASETS: dict[str, tuple[str, LabelTable]] = {
    f"{table.name}_shards_{split}": (split, table)
    for table in (IDD, VISTAS)
    for split in ("train", "val")
}
_TASKS = ("bbox", "segm", "segm_cityscapes", "sem_seg", "panoptic_seg")


def register_cityscapes_shards(
    name: str,
    root: str | Path | None = None,
    *,
    split: str,
    partitions: Sequence[int] | None = None,
    half: int | None = None,
    table: LabelTable = CITYSCAPES,
    labelled: bool | None = None,
) -> None:
    """Register a split of a shard folder, or a part of it, under a dataset name.

    A dataset without labels is never trained on or scored; submissions can be written for it.

    Args:
        name: name in Detectron2's DatasetCatalog.
        root: the shard folder; None for ``$DETECTRON2_DATASETS/cityscapes_shards`` (idd_shards,
            vistas_shards, by the name of the table), looked up when the dataset is loaded.
        split: "train", "val", "train_extra" or "test".
        partitions: numbers from 1; None for all.
        half: 1 or 2 for a half of the split, see `load_shards`; None for all.
        table: classes of the dataset.
        labelled: whether the shards hold the truth; None for all splits but "test".
    """
    if labelled is None:
        labelled = split != TEST_SPLIT
    DatasetCatalog.register(
        name, lambda: load_shards(root, split=split, partitions=partitions, half=half, table=table)
    )
    MetadataCatalog.get(name).set(
        thing_classes=[c.name for c in table.things],
        thing_colors=[c.color for c in table.things],
        stuff_classes=[c.name for c in table.classes],
        stuff_colors=[c.color for c in table.classes],
        ignore_label=VOID_TRAIN_ID,
        label_table=table,
        shard_folder=None if root is None else str(root),
        tasks=_TASKS if labelled else (),
    )


def has_truth(name: str) -> bool:
    """Whether a registered dataset can be trained on and scored.

    True of those that do not say, as of other packages.
    """
    return bool(MetadataCatalog.get(name).get("tasks", True))


def label_table_of(names: Sequence[str]) -> LabelTable:
    """The classes of registered datasets; those of Cityscapes where they do not say.

    Raises:
        D2CityscapesError: two of them have different classes, or the classes of one are lost.
    """
    tables = {name: _table_of(name) for name in names}
    if len({table.hash for table in tables.values()}) > 1:
        found = ", ".join(f"{name} ({table.name})" for name, table in tables.items())
        raise D2CityscapesError(f"DATASETS: {found} have other classes; use them one at a time")
    return next(iter(tables.values()), CITYSCAPES)


def _table_of(name: str) -> LabelTable:
    if "_shards_" in name and name not in DatasetCatalog.list():
        raise D2CityscapesError(not_registered(name))
    meta = MetadataCatalog.get(name)
    if broken := meta.get("broken"):  # see `d2_cityscapes.data.shard_folders`
        raise ShardError(broken)
    return meta.get("label_table", CITYSCAPES)


def not_registered(name: str) -> str:
    """The error about a dataset that is not there, with what was meant, or is missing."""
    folder = datasets_root() / f"{name.partition('_shards_')[0]}_shards"
    text = f"DATASETS: {name!r} is not registered{nearest(name, DatasetCatalog.list())}"
    if "_shards_" in name and not folder.is_dir():
        text += f"; {folder} is not there either (set DETECTRON2_DATASETS, or d2c prepare)"
    return text


def datasets_root() -> Path:
    """The folder of all datasets, $DETECTRON2_DATASETS."""
    return Path(expanded(os.getenv("DETECTRON2_DATASETS", "datasets")))


def shard_files(names: Sequence[str]) -> Iterator[Path]:
    """The files that registered datasets are read from: their shards, and index.json beside them.

    Other datasets, and names that are not registered, have none.
    """
    known = [name for name in names if name in DatasetCatalog.list()]
    shards = {Path(d["shard"]) for name in known for d in DatasetCatalog.get(name) if "shard" in d}
    yield from shards
    yield from {shard.with_name(INDEX_NAME) for shard in shards}


def index_digests(names: Sequence[str]) -> dict[str, str]:
    """Name -> SHA-256 of the index.json of its shards, which has the checksum of each of them.

    Data sets of other packages, and of a folder that has lost its index, are left out.
    """
    found = {}
    for name in names:
        meta = MetadataCatalog.get(name)
        if meta.get("label_table") is not None:
            index = _folder(meta.get("shard_folder"), meta.label_table) / INDEX_NAME
            if index.is_file():
                found[name] = file_sha256(index)
    return found


def _folder(root: str | Path | None, table: LabelTable) -> Path:
    """The folder of shards; of None, that of the table below `datasets_root`."""
    return datasets_root() / f"{table.name}_shards" if root is None else Path(root)


def load_shards(
    root: str | Path | None = None,
    *,
    split: str,
    partitions: Sequence[int] | None = None,
    half: int | None = None,
    table: LabelTable = CITYSCAPES,
) -> list[dict]:
    """Dataset dicts of shards, from their tables; no pixel is read.

    Beside Detectron2's standard fields a dict has "shard", the file, and "index", the record in it.
    Boxes are half-open XYXY_ABS; category ids are thing ids; group regions have iscrowd 1.

    The halves of a split are its first partitions and its last ones, whatever their number. Of an
    odd number the partition in the middle is divided: the first half of its images belongs to half
    1, with the one in the middle. So every image is in one half, and none in both.

    Raises:
        ShardError: missing folder, split, partition or file, two images of one name, or a split of
            one image, which has no halves.
    """
    if root is None:
        root = _folder(root, table)
        if not root.is_dir():
            raise ShardError(
                f"{root}: no such folder; set DETECTRON2_DATASETS to the folder that holds "
                f"{root.name}/, or {PREPARE} --output {root}"
            )
    reader = ShardReader(root, split=split, partitions=partitions, table=table)
    dicts: list[dict[str, Any]] = []
    seen: dict[str, Path] = {}
    for i, file_name in enumerate(reader.file_names):
        shard, index = reader.source(i)
        image_id = image_name(file_name)
        if image_id in seen:
            raise ShardError(
                f"{root}: two images are called {image_id} ({seen[image_id]} and {shard}), so that "
                f"one would stand for both; rename one and {PREPARE} again"
            )
        seen[image_id] = shard
        height, width = reader.image_size(i)
        dicts.append(
            {
                "file_name": file_name,
                "image_id": image_id,
                "height": height,
                "width": width,
                "shard": str(shard),
                "index": index,
                "annotations": _annotations(reader, i, table),
            }
        )
    if half is None:
        return dicts
    middle = _middle([d["shard"] for d in dicts])
    found = dicts[:middle] if half == 1 else dicts[middle:]
    if not found:
        raise ShardError(
            f"{root}: split {split} has {len(dicts)} image, which has no halves to tune on and to "
            f"report; {PREPARE} on more images, or use the whole split"
        )
    return found


def _middle(shards: Sequence[str]) -> int:
    """How many images belong to the first half.

    Args:
        shards: the shard of each image, in order.
    """
    sizes = [len([*group]) for _, group in itertools.groupby(shards)]
    whole, divided = sizes[: len(sizes) // 2], sizes[len(sizes) // 2 :][: len(sizes) % 2]
    return sum(whole) + sum(-(-size // 2) for size in divided)


def _annotations(reader: ShardReader, index: int, table: LabelTable) -> list[dict]:
    found = reader.table(index)
    things = table.thing_id_of_train[found.classes]
    columns = (found.boxes.tolist(), things.tolist(), found.crowd.tolist(), found.areas.tolist())
    return [
        {
            "bbox": box,
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": thing,
            "iscrowd": int(crowd),
            "area": area,
        }
        for box, thing, crowd, area in zip(*columns, strict=True)
    ]


for _name, _arguments in BUILTIN_DATASETS.items():
    register_cityscapes_shards(_name, **_arguments)
register_cityscapes_shards(TEST_DATASET, split=TEST_SPLIT)
for _name, (_split, _table) in OTHER_DATASETS.items():
    register_cityscapes_shards(_name, split=_split, table=_table)
