"""Datasets and their dicts."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data import ShardError, ShardReader, register_cityscapes_shards
from d2_cityscapes.data.register import BUILTIN_DATASETS, load_shards


def test_roles_divide_val(datasets):
    names = {
        role: [d["file_name"] for d in DatasetCatalog.get(f"cityscapes_shards_val{role}")]
        for role in ("", "_select", "_report")
    }
    assert len(names[""]) == 8
    assert names["_select"] + names["_report"] == names[""]
    assert len(names["_select"]) == 4


def test_dicts_hold_the_tables(datasets):
    dicts = DatasetCatalog.get("cityscapes_shards_train")
    reader = ShardReader(datasets / "cityscapes_shards", split="train")
    assert len(dicts) == len(reader) == 8
    for i, d in enumerate(dicts):
        record = reader[i]
        assert (d["height"], d["width"]) == (64, 128)
        assert d["image_id"] + "_leftImg8bit.png" == d["file_name"] == record.file_name
        assert ShardReader(d["shard"])[d["index"]].image.equal(record.image)
        assert [a["bbox"] for a in d["annotations"]] == record.boxes.tolist()
        assert [a["area"] for a in d["annotations"]] == record.areas.tolist()
        assert [a["iscrowd"] for a in d["annotations"]] == record.crowd.tolist()
        assert [a["category_id"] + 11 for a in d["annotations"]] == record.classes.tolist()


def test_metadata_names_the_classes():
    for name in BUILTIN_DATASETS:
        meta = MetadataCatalog.get(name)
        assert meta.thing_classes[:3] == ["person", "rider", "car"]
        assert len(meta.stuff_classes) == 19 and meta.ignore_label == 255
        assert "panoptic_seg" in meta.tasks


def test_any_partition_by_name(datasets):
    whole = [d["image_id"] for d in DatasetCatalog.get("cityscapes_shards_val")]
    parts = [DatasetCatalog.get(f"cityscapes_shards_val_{k}") for k in (1, 2, 3, 4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    assert [d["image_id"] for part in parts for d in part] == whole
    with pytest.raises(ShardError, match=r"no partition 5 .*it has 4"):
        DatasetCatalog.get("cityscapes_shards_val_5")


def test_any_set_of_partitions_can_be_registered(datasets):
    register_cityscapes_shards("test_val_1_3", split="val", partitions=[1, 3])
    try:
        assert len(DatasetCatalog.get("test_val_1_3")) == 4
    finally:
        DatasetCatalog.remove("test_val_1_3")
        MetadataCatalog.remove("test_val_1_3")


def test_missing_root_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ShardError, match=r"DETECTRON2_DATASETS.*prepare_shards.py"):
        load_shards(split="train")
