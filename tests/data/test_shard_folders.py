"""Datasets that are known by their folder alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.data import ShardError, register_cityscapes_shards, write_shards
from d2_cityscapes.data.register import label_table_of
from d2_cityscapes.data.shard_folders import register_shard_folders
from d2_cityscapes.engine.setup import ConfigError, check_datasets, load_config
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.labels.table_file import ClassEntry, make_table
from d2_cityscapes.modeling.classes import check_classes
from d2_cityscapes.shards.reader import folder_table

HARBOUR = make_table(
    "harbour", [ClassEntry("quay", color=(9, 8, 7)), ClassEntry("ship", thing=True)]
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DETECTRON2_DATASETS of its own; what is registered from it is gone afterwards."""
    with monkeypatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tmp_path))
        yield tmp_path
    register_shard_folders()


@pytest.fixture
def pack(root: Path, array_source) -> Callable[..., Path]:
    """(folder, split, table) -> the folder with one picture of one ship."""

    def make(name: str, split: str, table: LabelTable = HARBOUR) -> Path:
        ids = np.full((4, 6), table.things[0].label_id * 1000)
        source = array_source("a.png", np.zeros((4, 6, 3), np.uint8), ids)
        write_shards([source], root / name, split=split, table=table)
        return root / name

    return make


def ours() -> list[str]:
    return sorted(name for name in DatasetCatalog.list() if name.startswith("harbour"))


def test_a_folder_is_enough(pack) -> None:
    for split in ("train", "night"):
        pack("harbour_shards", split)
    register_shard_folders()
    assert ours() == [f"harbour_shards_{s}" for s in ("night", "train", "val")]
    for name in ("harbour_shards_train", "harbour_shards_night"):
        (entry,) = DatasetCatalog.get(name)
        assert entry["file_name"] == "a.png" and entry["annotations"][0]["category_id"] == 0
        meta = MetadataCatalog.get(name)
        assert meta.thing_classes == ["ship"] and meta.stuff_classes == ["quay", "ship"]
        assert meta.stuff_colors[0] == (9, 8, 7) and "panoptic_seg" in meta.tasks
        assert label_table_of([name]) == HARBOUR
    with pytest.raises(ShardError, match=r"harbour_shards: no shards of split 'val'"):
        DatasetCatalog.get("harbour_shards_val")


def test_what_is_packed_later_is_found_when_a_config_is_read(pack, root: Path) -> None:
    """And what is gone is forgotten."""
    folder = pack("harbour_shards", "train")
    assert ours() == []
    load_config()
    assert ours() == ["harbour_shards_train", "harbour_shards_val"]
    shutil.rmtree(folder)
    load_config()
    assert ours() == []


def test_the_classes_alone_name_what_a_model_predicts(pack) -> None:
    folder = pack("harbour_shards", "train")
    for path in folder.iterdir():
        if path.name != "classes.yaml":
            path.unlink()
    register_shard_folders()
    assert label_table_of(["harbour_shards_val"]) == HARBOUR
    with pytest.raises(ShardError, match=r"harbour_shards: no index.json here"):
        DatasetCatalog.get("harbour_shards_val")


def test_colors_may_be_changed_and_nothing_else(pack) -> None:
    folder = pack("harbour_shards", "train")
    classes = folder / "classes.yaml"
    text = classes.read_text()
    classes.write_text(text.replace("[9, 8, 7]", "[1, 2, 3]"))
    register_shard_folders()
    assert MetadataCatalog.get("harbour_shards_train").stuff_colors[0] == (1, 2, 3)
    assert len(DatasetCatalog.get("harbour_shards_train")) == 1
    assert pack("harbour_shards", "val") and "[1, 2, 3]" in classes.read_text()

    classes.write_text(text.replace("name: ship", "name: boat"))
    register_shard_folders()
    with pytest.raises(ShardError, match=r"made with another label table .* class 1 is 'ship' and"):
        DatasetCatalog.get("harbour_shards_train")
    with pytest.raises(ShardError, match=r"classes.yaml: not the classes that these shards were"):
        folder_table(folder)


def _damage(path: Path) -> None:
    path.write_text("classes: [")


def _lose(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_damage, "classes.yaml: while parsing"), (_lose, "and its classes.yaml is missing; copy it")],
)
def test_a_broken_folder_is_an_error_where_it_is_used(pack, damage, message: str) -> None:
    pack("pier_shards", "train")
    damage(pack("harbour_shards", "train") / "classes.yaml")
    register_shard_folders()
    assert label_table_of(["pier_shards_train"]) == HARBOUR, "others are none the worse"
    with pytest.raises(ShardError, match=message) as caught:
        DatasetCatalog.get("harbour_shards_train")
    assert "\n" not in str(caught.value)
    cfg = load_config(opts=["DATASETS.TRAIN", "('harbour_shards_train',)"])
    with pytest.raises(ShardError, match=message):
        check_classes(cfg)


def test_a_dataset_that_is_missing_is_no_cityscapes(root: Path) -> None:
    with pytest.raises(
        D2CityscapesError, match=r"'pier_shards_val' is not registered.*pier_shards "
    ):
        label_table_of(["pier_shards_val"])
    cfg = load_config(opts=["DATASETS.TEST", "('pier_shards_val',)"])
    with pytest.raises(ConfigError, match=r"is not there either \(set DETECTRON2_DATASETS"):
        check_datasets(cfg, train=False)


def test_built_in_classes_in_a_folder_of_another_name(pack) -> None:
    """They need no file; a name that somebody has taken stays theirs."""
    folder = pack("harbour_shards", "train", CITYSCAPES)
    assert not (folder / "classes.yaml").exists()
    register_cityscapes_shards("harbour_shards_val", folder, split="train")
    try:
        register_shard_folders()
        register_shard_folders()
        assert label_table_of(["harbour_shards_train"]) is CITYSCAPES
        assert len(DatasetCatalog.get("harbour_shards_val")) == 1
    finally:
        DatasetCatalog.remove("harbour_shards_val")
        MetadataCatalog.remove("harbour_shards_val")


def test_a_process_of_its_own_knows_them_too(pack, root: Path, repository: Path) -> None:
    """As worker processes, stages and trials are: importing the package registers them."""
    pack("harbour_shards", "train")
    code = (
        "import d2_cityscapes\n"
        "from detectron2.data import DatasetCatalog\n"
        "print(len(DatasetCatalog.get('harbour_shards_train')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.stdout == "1\n", done.stderr


def test_an_order_that_no_file_can_say_is_for_python_alone(pack, caplog) -> None:
    import dataclasses

    classes = (HARBOUR.classes[1], HARBOUR.classes[0])
    classes = tuple(dataclasses.replace(c, train_id=i) for i, c in enumerate(classes))
    table = LabelTable("odd", classes, HARBOUR.label_names)
    folder = pack("harbour_shards", "train", table)
    assert not (folder / "classes.yaml").exists() and "for Python only" in caplog.text
    register_cityscapes_shards("odd_train", folder, split="train", table=table)
    try:
        assert len(DatasetCatalog.get("odd_train")) == 1
    finally:
        DatasetCatalog.remove("odd_train")
        MetadataCatalog.remove("odd_train")
