"""Shards as Detectron2 datasets. Importing this module registers the built-in ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, IDD, VISTAS, VOID_TRAIN_ID, LabelTable
from d2_cityscapes.shards.file import PREPARE, ShardError
from d2_cityscapes.shards.reader import ShardReader
from d2_cityscapes.sources.names import SPLITS, image_name

__all__ = [
    "BUILTIN_DATASETS",
    "OTHER_DATASETS",
    "label_table_of",
    "load_shards",
    "register_cityscapes_shards",
]

# Partitions that have a name of their own, whether or not a folder has as many.
NAMED_PARTITIONS = 16
# Name -> split and partitions (None: all). The roles keep the tuning half of val apart from the
# half that final scores are reported on.
BUILTIN_DATASETS: dict[str, tuple[str, tuple[int, ...] | None]] = {
    **{f"cityscapes_shards_{split}": (split, None) for split in SPLITS},
    "cityscapes_shards_val_select": ("val", (1, 2)),
    "cityscapes_shards_val_report": ("val", (3, 4)),
    **{
        f"cityscapes_shards_{split}_{k}": (split, (k,))
        for split in SPLITS
        for k in range(1, NAMED_PARTITIONS + 1)
    },
}
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
    table: LabelTable = CITYSCAPES,
) -> None:
    """Register a split of a shard folder, or some of its partitions, under a dataset name.

    Args:
        name: name in Detectron2's DatasetCatalog.
        root: the shard folder; None for ``$DETECTRON2_DATASETS/cityscapes_shards`` (idd_shards,
            vistas_shards, by the name of the table), looked up when the dataset is loaded.
        split: "train", "val" or "train_extra".
        partitions: numbers from 1; None for all.
        table: classes of the dataset.
    """
    DatasetCatalog.register(
        name, lambda: load_shards(root, split=split, partitions=partitions, table=table)
    )
    MetadataCatalog.get(name).set(
        thing_classes=[c.name for c in table.things],
        thing_colors=[c.color for c in table.things],
        stuff_classes=[c.name for c in table.classes],
        stuff_colors=[c.color for c in table.classes],
        ignore_label=VOID_TRAIN_ID,
        label_table=table,
        tasks=_TASKS,
    )


def label_table_of(names: Sequence[str]) -> LabelTable:
    """The classes of registered datasets; those of Cityscapes where they do not say.

    Raises:
        D2CityscapesError: two of them have different classes.
    """
    tables = {name: MetadataCatalog.get(name).get("label_table", CITYSCAPES) for name in names}
    if len({table.hash for table in tables.values()}) > 1:
        found = ", ".join(f"{name} ({table.name})" for name, table in tables.items())
        raise D2CityscapesError(f"DATASETS: {found} have other classes; use them one at a time")
    return next(iter(tables.values()), CITYSCAPES)


def load_shards(
    root: str | Path | None = None,
    *,
    split: str,
    partitions: Sequence[int] | None = None,
    table: LabelTable = CITYSCAPES,
) -> list[dict]:
    """Dataset dicts of shards, from their tables; no pixel is read.

    Beside Detectron2's standard fields a dict has "shard", the file, and "index", the record in it.
    Boxes are half-open XYXY_ABS; category ids are thing ids; group regions have iscrowd 1.

    Raises:
        ShardError: missing folder, split, partition or file.
    """
    if root is None:
        root = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / f"{table.name}_shards"
        if not root.is_dir():
            raise ShardError(
                f"{root}: no such folder; set DETECTRON2_DATASETS to the folder that holds "
                f"{root.name}/, or {PREPARE} --output {root}"
            )
    reader = ShardReader(root, split=split, partitions=partitions, table=table)
    dicts = []
    for i, file_name in enumerate(reader.file_names):
        shard, index = reader.source(i)
        height, width = reader.image_size(i)
        dicts.append(
            {
                "file_name": file_name,
                "image_id": image_name(file_name),
                "height": height,
                "width": width,
                "shard": str(shard),
                "index": index,
                "annotations": _annotations(reader, i, table),
            }
        )
    return dicts


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


for _name, (_split, _partitions) in BUILTIN_DATASETS.items():
    register_cityscapes_shards(_name, split=_split, partitions=_partitions)
for _name, (_split, _table) in OTHER_DATASETS.items():
    register_cityscapes_shards(_name, split=_split, table=_table)
