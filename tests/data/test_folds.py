"""Folds: partitions dealt so that every picture is tested once, and never where it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2_cityscapes.config import get_cfg
from d2_cityscapes.data.folds import deal, fold_name, others_name, register_folds
from d2_cityscapes.data.register import has_truth, label_table_of
from d2_cityscapes.engine.setup import ConfigError, check_datasets, load_config
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.reader import ShardError

pytestmark = pytest.mark.usefixtures("datasets")

TRAIN = "cityscapes_shards_train"  # 8 pictures in 8 partitions


def _images(name: str) -> list[str]:
    register_folds([name])
    return [record["image_id"] for record in DatasetCatalog.get(name)]


@pytest.mark.parametrize("folds", [2, 3, 8])
def test_every_picture_is_in_one_fold_and_beside_all_others(folds: int) -> None:
    every = _images(TRAIN)
    tested = [_images(fold_name(TRAIN, k, folds)) for k in range(1, folds + 1)]
    assert sorted(image for fold in tested for image in fold) == sorted(every)
    for k, fold in enumerate(tested, 1):
        others = _images(others_name(TRAIN, k, folds))
        assert fold and not {*fold} & {*others}
        assert sorted([*fold, *others]) == sorted(every)


def test_partitions_are_dealt_round_by_round() -> None:
    dealt = [[Path(shard).name for shard in fold] for fold in deal(TRAIN, 3)]
    numbers = ((1, 4, 7), (2, 5, 8), (3, 6))
    assert dealt == [[f"train_{k:02d}of08.safetensors" for k in fold] for fold in numbers]


def test_a_fold_has_the_classes_and_the_truth_of_its_data_set() -> None:
    name = others_name(TRAIN, 2, 3)
    register_folds([name])
    assert label_table_of([name]) is CITYSCAPES and has_truth(name)
    assert MetadataCatalog.get(name).thing_classes == MetadataCatalog.get(TRAIN).thing_classes
    assert MetadataCatalog.get(name).name == name


def test_a_config_that_names_a_fold_knows_it() -> None:
    name = "cityscapes_shards_val_fold_2_of_4"
    opts = ["DATASETS.TEST", f"('{name}',)", "MODEL.DEVICE", "cpu"]
    check_datasets(load_config("", opts), train=False)
    assert len(DatasetCatalog.get(name)) == 2


@pytest.mark.parametrize(
    "name",
    [f"{TRAIN}_fold_4_of_3", f"{TRAIN}_fold_1_of_1", f"{TRAIN}_fold_0_of_3", "x_fold_1_of_3"],
)
def test_names_of_no_fold_are_not_registered(name: str) -> None:
    register_folds([name])
    assert name not in DatasetCatalog.list()
    cfg = get_cfg()
    cfg.DATASETS.TEST = (name,)
    with pytest.raises(ConfigError, match="is not registered"):
        check_datasets(cfg, train=False)


def test_numbers_that_cannot_be_dealt() -> None:
    with pytest.raises(ShardError, match=r"9 folds: .* has 8 partitions .*--partitions SPLIT=9"):
        deal(TRAIN, 9)
    with pytest.raises(ShardError, match="1 folds: there is nothing to train on"):
        deal(TRAIN, 1)
    name = fold_name(TRAIN, 1, 9)
    register_folds([name])
    with pytest.raises(ShardError, match="9 folds"):
        DatasetCatalog.get(name)
