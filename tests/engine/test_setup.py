"""Configs: read, checked, and refused in one line."""

from __future__ import annotations

import pytest
import torch

from d2_cityscapes.data import ShardError
from d2_cityscapes.engine.setup import (
    ConfigError,
    check_datasets,
    check_gpus,
    check_weights_file,
    load_config,
)


@pytest.mark.parametrize("folder", ["configs", "configs/demo"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_stage_configs_load_and_are_frozen(repository, folder, stage):
    cfg = load_config(repository / folder / f"stage{stage}.yaml", ["SOLVER.MAX_ITER", "7"])
    assert cfg.SOLVER.MAX_ITER == 7 and cfg.is_frozen()


def test_stage_configs_say_what_the_recipe_says(repository):
    one, two, three = (load_config(repository / f"configs/stage{k}.yaml") for k in (1, 2, 3))
    assert one.MODEL.FREEZE.MODULES == ["backbone.bottom_up"]
    assert two.MODEL.FREEZE.MODULES == ["backbone"]
    assert three.MODEL.FREEZE.MODULES == []
    assert (one.SOLVER.MAX_ITER, two.SOLVER.MAX_ITER, three.SOLVER.MAX_ITER) == (2976, 4464, 128)
    assert two.MODEL.RPN.IOU_THRESHOLDS == three.MODEL.RPN.IOU_THRESHOLDS == [0.220, 0.789]
    assert two.MODEL.ROI_HEADS.IOU_THRESHOLDS == three.MODEL.ROI_HEADS.IOU_THRESHOLDS == [0.415]
    assert pytest.approx(two.SOLVER.BASE_LR / 10) == three.SOLVER.BASE_LR
    assert three.DATASETS.TRAIN == ("cityscapes_shards_val_select",)
    for cfg in (one, two, three):
        assert cfg.DATASETS.TEST == ("cityscapes_shards_val_report",)
        assert cfg.MODEL.ROI_BOX_HEAD.GIOU_WEIGHT == 0.1
        assert not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS


def test_device_and_amp_follow_the_machine(repository, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = load_config(repository / "configs/stage1.yaml")
    assert cfg.MODEL.DEVICE == "cpu" and not cfg.SOLVER.AMP.ENABLED
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = load_config(repository / "configs/stage1.yaml")
    assert cfg.MODEL.DEVICE == "cuda" and cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.MAX_ITR", "3"], r"unknown config key.*MAX_ITR.*nearest: SOLVER.MAX_ITER"),
        (["MODEL.FREEZ.MODULES", "[]"], "unknown config key"),
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAX_ITER", "many"], "command line: .*SOLVER.MAX_ITER|command line: "),
    ],
)
def test_wrong_overrides(opts, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("", opts)
    assert "\n" not in str(caught.value)


def test_wrong_files(tmp_path):
    with pytest.raises(ConfigError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("MODEL:\n  FREEZE:\n    MODULE: []\n")
    with pytest.raises(ConfigError, match=r"wrong.yaml: unknown config key.*FREEZE.MODULE"):
        load_config(wrong)
    wrong.write_text("MODEL: [")
    with pytest.raises(ConfigError, match=r"wrong\.yaml") as caught:
        load_config(wrong)
    assert "\n" not in str(caught.value)


def _tested_on(dataset):
    return load_config("", ["DATASETS.TEST", f"({dataset!r},)"])


def test_missing_weights_and_datasets(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"MODEL.WEIGHTS .*x.pth: no such file"):
        check_weights_file(load_config("", ["MODEL.WEIGHTS", str(tmp_path / "x.pth")]))
    check_weights_file(load_config("", ["MODEL.WEIGHTS", "detectron2://a/b.pkl"]))
    with pytest.raises(
        ConfigError, match=r"'cityscapes_shards_vall' is not registered; nearest: c"
    ):
        check_datasets(_tested_on("cityscapes_shards_vall"), train=False)
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN is empty"):
        check_datasets(load_config(), train=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ShardError, match="DETECTRON2_DATASETS"):
        check_datasets(_tested_on("cityscapes_shards_val"), train=False)


def test_more_gpus_than_there_are():
    check_gpus(1)
    with pytest.raises(ConfigError, match="this machine has"):
        check_gpus(torch.cuda.device_count() + 2)
