"""Datasets and their dicts."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data import ShardError, ShardReader, register_cityscapes_shards, write_shards
from d2_cityscapes.data.register import BUILTIN_DATASETS, has_truth, load_shards


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
    with pytest.raises(ShardError, match=r"DETECTRON2_DATASETS.*d2c prepare"):
        load_shards(split="train")


@pytest.fixture
def pack(tmp_path, monkeypatch, array_source):
    """(images, partitions) -> the shards of val in a DETECTRON2_DATASETS of their own."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))

    def make(images: int, partitions: int, split: str = "val"):
        pixels, ids = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 7)
        sources = [array_source(f"{i:03d}.png", pixels, ids) for i in range(images)]
        output = tmp_path / "cityscapes_shards"
        write_shards(sources, output, split=split, partitions=partitions)
        return output

    return make


def _names(role: str) -> list[str]:
    return [d["file_name"] for d in DatasetCatalog.get(f"cityscapes_shards_val{role}")]


@pytest.mark.parametrize(
    ("images", "partitions", "selected"),
    [
        (6, 1, 3),
        (6, 2, 3),
        (6, 3, 3),  # 2 + 1 of the partition in the middle
        (6, 4, 4),  # 2 + 2 of 2, 2, 1, 1: whole partitions, as ever
        (6, 6, 3),
        (7, 3, 4),  # 3 + 1 of 2
        (2, 1, 1),
        (5, 5, 3),  # one image in the middle, which is of the first half
        (500, 4, 250),
        (500, 8, 252),
    ],
)
def test_roles_are_halves_whatever_the_partitions(pack, images, partitions, selected):
    pack(images, partitions)
    whole = _names("")
    assert len(whole) == images and len(_names("_select")) == selected
    assert _names("_select") + _names("_report") == whole


def test_one_image_has_no_halves(pack):
    pack(1, 1)
    assert _names("_select") == ["000.png"]
    with pytest.raises(ShardError, match=r"split val has 1 image, which has no halves"):
        _names("_report")


def test_two_images_of_one_name_are_refused(pack):
    """In shards whose index does not say so, as those of elsewhere."""
    folder = pack(2, 2)
    pack(2, 1, split="train")
    index = json.loads((folder / "index.json").read_text())
    first, second = sorted(folder.glob("val_*"))
    shutil.copyfile(first, second)
    (entry,) = (e for e in index["shards"] if e["file"] == second.name)
    entry["size"] = second.stat().st_size
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"two images are called 000 .*rename one"):
        _names("")
    assert len(DatasetCatalog.get("cityscapes_shards_train")) == 2


def test_the_test_split_has_no_truth(pack):
    pack(3, 1, split="test")
    assert len(DatasetCatalog.get("cityscapes_shards_test")) == 3
    assert MetadataCatalog.get("cityscapes_shards_test").tasks == ()
    assert not has_truth("cityscapes_shards_test") and has_truth("cityscapes_shards_val")
    register_cityscapes_shards("own_test", split="test", labelled=True)
    try:
        assert has_truth("own_test")
    finally:
        DatasetCatalog.remove("own_test")
        MetadataCatalog.remove("own_test")


def test_the_home_folder_is_expanded(pack, tmp_path, monkeypatch):
    pack(2, 1)
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    monkeypatch.setenv("DETECTRON2_DATASETS", f"~/{tmp_path.name}")
    assert len(_names("")) == 2
    monkeypatch.setenv("DETECTRON2_DATASETS", f"$HOME/{tmp_path.name}")
    assert len(_names("")) == 2
