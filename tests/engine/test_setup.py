"""Configs: read, checked, and refused in one line."""

from __future__ import annotations

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from d2_cityscapes.data import ShardError, register_cityscapes_shards
from d2_cityscapes.data.loader import build_train_loader
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


def test_a_config_made_for_the_cpu_keeps_amp(monkeypatch, log):
    opts = ["MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", "True"]
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        cfg = load_config("", opts)
        assert cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.AMP.ENABLED
    assert log.text == ""


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


@pytest.mark.parametrize("folder", ["", "base/"])
def test_files_run_no_code(tmp_path, folder):
    """Neither a file with Python tags, nor one that it is based on."""
    (tmp_path / "base").mkdir()
    marker = tmp_path / "ran"
    for hostile in (
        f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {marker}"]',
        f"OUTPUT_DIR: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path"
        f' ["{marker}"]]',
        "OUTPUT_DIR: !!python/object/new:type {args: [z, !!python/tuple [], {}]}",
        "SOLVER: {STEPS: !!python/tuple [1, 2]}",
    ):
        (tmp_path / folder / "hostile.yaml").write_text(hostile + "\n")
        if folder:
            (tmp_path / "hostile.yaml").write_text("_BASE_: base/hostile.yaml\n")
        with pytest.raises(ConfigError, match=r"hostile.yaml: .*tag.*write plain ones") as caught:
            load_config(tmp_path / "hostile.yaml")
        assert "\n" not in str(caught.value) and not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        "", "null", "- 1", "SOLVER", "3", "1: 2", "SOLVER: 3", "SOLVER: {MAX_ITER: {a: 1}}",
        "_BASE_: nowhere.yaml", "_BASE_: 3", "_BASE_: odd.yaml", "VERSION: x", "\0", "a: *b",
        "SOLVER: null", "? [a]\n: 1", "[" * 3000,
    ],
)  # fmt: skip
def test_odd_files_are_one_line(tmp_path, content):
    file = tmp_path / "odd.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"odd.yaml: ") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["", "base"])
def test_aliases_of_aliases_are_one_short_line(tmp_path, folder):
    """Each level repeats the one before ten times; with a few levels more they fill any memory."""
    keys = ["MASK_ON", "KEYPOINT_ON", "LOAD_PROPOSALS", "META_ARCHITECTURE", "WEIGHTS"]
    lines = ["MODEL:", f"  DEVICE: &a0 [{', '.join(['x'] * 10)}]"]
    for level, key in enumerate(keys):
        lines.append(f"  {key}: &a{level + 1} [{', '.join([f'*a{level}'] * 10)}]")
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "bomb.yaml").write_text("\n".join(lines))
    if folder:
        (tmp_path / "bomb.yaml").write_text("_BASE_: base/bomb.yaml\n")
    with pytest.raises(ConfigError, match=r"bomb\.yaml: aliases .* 100000 values") as caught:
        load_config(tmp_path / "bomb.yaml")
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_a_base_that_is_not_there_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: gone.yaml\n")
    with pytest.raises(ConfigError, match=r"a\.yaml: .*gone\.yaml: No such file or directory$"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.yaml: 'utf-8' codec can't decode"):
        load_config(tmp_path / "a.yaml")


def test_paths_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", "/runs")
    file = tmp_path / "config.yaml"
    file.write_text("MODEL: {WEIGHTS: ~/weights.pth}\nOUTPUT_DIR: $RUNS/a\n")
    cfg = load_config(file, ["MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE", "${RUNS}/anchors.json"])
    assert f"{tmp_path}/weights.pth" == cfg.MODEL.WEIGHTS and cfg.OUTPUT_DIR == "/runs/a"
    assert cfg.MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE == "/runs/anchors.json"
    address = "detectron2://ImageNet/$RUNS.pkl"
    assert address == load_config("", ["MODEL.WEIGHTS", address]).MODEL.WEIGHTS


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", "cudax", "cpu:-3"])
def test_devices_that_there_are_not(device):
    with pytest.raises(ConfigError, match=f"MODEL.DEVICE '{device}': use cpu, cuda or cuda:NUMBER"):
        load_config("", ["MODEL.DEVICE", device])


def test_a_gpu_that_this_machine_does_not_have(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert load_config("", ["MODEL.DEVICE", "cuda:1"]).MODEL.DEVICE == "cuda:1"
    with pytest.raises(ConfigError, match="'cuda:2': this machine has 2 GPUs"):
        load_config("", ["MODEL.DEVICE", "cuda:2"])


@pytest.fixture
def training_set():
    """(images, how many of them without objects) -> overrides that train on such a dataset."""
    name = "dataset_of_test_setup"

    def register(images: int, empty: int = 0) -> list[str]:
        thing = [{"iscrowd": 0, "category_id": 0, "bbox": [0, 0, 1, 1]}]
        dicts = [{"shard": "a", "annotations": thing if i >= empty else []} for i in range(images)]
        DatasetCatalog.register(name, lambda: dicts)
        MetadataCatalog.get(name).thing_classes = ["car"]
        return ["DATASETS.TRAIN", f"({name!r},)"]

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


def test_epochs_become_iterations(training_set, tmp_path):
    """2975 images, 4 a batch: 743.75 iterations an epoch, and every length is rounded up."""
    file = tmp_path / "epochs.yaml"
    file.write_text(
        """
SOLVER:
  IMS_PER_BATCH: 4
  EPOCHS:
    MAX_ITER: 4.0
    STEPS: [1, 2.5]
    WARMUP_ITERS: 0.1
    COSINE_ITERS: 10.0
    CHECKPOINT_PERIOD: 0.5
    EVAL_PERIOD: 2.0
    VAL_LOSS_PERIOD: 1.0
"""
    )
    cfg = load_config(file, training_set(2975))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (2975, (744, 1860))
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.COSINE_ITERS) == (75, 7438)
    assert (cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (372, 1488)
    assert cfg.TEST.VAL_LOSS_PERIOD == 744
    resolved = tmp_path / "config.yaml"
    resolved.write_text(cfg.dump())
    again = load_config(resolved, ["DATASETS.TRAIN", "('cityscapes_shards_none',)"])
    assert again.SOLVER == cfg.SOLVER and again.TEST == cfg.TEST
    assert not any(again.SOLVER.EPOCHS.values())


def test_epochs_count_the_images_that_train(training_set):
    opts = [
        *training_set(100, empty=20), "SOLVER.IMS_PER_BATCH", "1", "SOLVER.EPOCHS.MAX_ITER", "0.07",
    ]  # fmt: skip
    subset = ["DATALOADER.RANDOM_SUBSET_RATIO", "0.5"]
    sampler = ["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"]
    keep = ["DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"]
    for more, iterations in (
        (keep, 7), ([], 6), ([*keep, *subset], 7), ([*keep, *subset, *sampler], 4),
    ):  # fmt: skip
        assert iterations == load_config("", [*opts, *more]).SOLVER.MAX_ITER


def test_the_command_line_wins_over_epochs_of_a_file(training_set, tmp_path):
    file = tmp_path / "epochs.yaml"
    file.write_text("SOLVER: {IMS_PER_BATCH: 2, EPOCHS: {MAX_ITER: 3.0}}\nTEST: {EVAL_PERIOD: 5}\n")
    opts = training_set(10)
    plain, epochs = ["SOLVER.MAX_ITER", "7"], ["SOLVER.EPOCHS.MAX_ITER", "2.0"]
    for more, iterations in (
        ([], 15), (plain, 7), (epochs, 10), ([*epochs, *plain], 7), ([*plain, *epochs], 10),
    ):  # fmt: skip
        cfg = load_config(file, [*opts, *more])
        assert iterations == cfg.SOLVER.MAX_ITER and cfg.TEST.EVAL_PERIOD == 5
        assert cfg.SOLVER.EPOCHS.MAX_ITER == 0.0
    periods = ["SOLVER.EPOCHS.EVAL_PERIOD", "1.0", "TEST.EVAL_PERIOD", "2"]
    assert load_config(file, [*opts, *periods]).TEST.EVAL_PERIOD == 2


@given(st.integers(1, 10**6), st.integers(1, 400), st.integers(1, 64))
def test_epochs_are_rounded_up_exactly(hundredths, images, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("d2_cityscapes.engine.setup._count_training_images", lambda cfg: images)
        opts = ["SOLVER.IMS_PER_BATCH", str(batch)]
        epochs = ["SOLVER.EPOCHS.MAX_ITER", f"{hundredths / 100:.2f}"]
        iterations = load_config("", [*opts, *epochs]).SOLVER.MAX_ITER
    assert (iterations - 1) * batch * 100 < hundredths * images <= iterations * batch * 100


def test_epochs_need_the_training_set_only_where_they_act(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    opts = ["DATASETS.TRAIN", "('cityscapes_shards_train',)", "SOLVER.EPOCHS.MAX_ITER", "2.0"]
    with pytest.raises(ShardError, match="set DETECTRON2_DATASETS"):
        load_config("", opts)
    assert load_config("", [*opts, "SOLVER.MAX_ITER", "5"]).SOLVER.MAX_ITER == 5
    assert load_config("", opts, train=False).SOLVER.EPOCHS.MAX_ITER == 2.0


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["SOLVER.EPOCHS.MAX_ITER", "-1.0"], r"SOLVER.EPOCHS.MAX_ITER -1.0: use positive numbers"),
        (["SOLVER.EPOCHS.MAX_ITER", "4"], r"EPOCHS.MAX_ITER; write it with a decimal point"),
        (["SOLVER.EPOCHS.STEPS", "['a']"], r"SOLVER.EPOCHS.STEPS 'a': use positive numbers"),
        (["SOLVER.EPOCHS.STEPS", "[1.0]", "SOLVER.IMS_PER_BATCH", "0"], r"IMS_PER_BATCH 0: "),
        (["SOLVER.EPOCHS.STEPS", "[1.0]", "DATASETS.TRAIN", "()"], r"DATASETS.TRAIN is empty"),
        (["SOLVER.EPOCHS.STEPS", "[1]", "DATASETS.TRAIN", "('x',)"], r"'x' is not registered"),
    ],
)
def test_wrong_epochs(opts, message, training_set):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("", [*training_set(10), *opts])
    assert "\n" not in str(caught.value)


def test_training_and_loader_agree_on_epochs(datasets):
    """One epoch of a subset is as many iterations as its images last."""
    opts = [
        "DATASETS.TRAIN", "('cityscapes_shards_train',)", "SEED", "3", "SOLVER.IMS_PER_BATCH", "1",
        "DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler", "DATALOADER.NUM_WORKERS", "0",
        "DATALOADER.RANDOM_SUBSET_RATIO", "0.7", "SOLVER.EPOCHS.MAX_ITER", "1.0",
    ]  # fmt: skip
    cfg = load_config("", opts)
    loader = build_train_loader(cfg, mapper=dict)
    batches = iter(loader)
    epochs = [{next(batches)[0]["file_name"] for _ in range(cfg.SOLVER.MAX_ITER)} for _ in range(2)]
    assert len(epochs[0]) == cfg.SOLVER.MAX_ITER == 5 and epochs[0] == epochs[1]


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


def test_images_without_truth_are_neither_trained_on_nor_validated(datasets, monkeypatch):
    """Before anything is built. The shards of val stand for those of the test split."""
    register_cityscapes_shards("unlabelled", split="val", labelled=False)
    try:
        train = ["DATASETS.TRAIN", "('unlabelled',)"]
        with pytest.raises(ConfigError, match=r"TRAIN: unlabelled has no annotations to train on"):
            check_datasets(load_config("", train), train=True)
        train = ["DATASETS.TRAIN", "('cityscapes_shards_train',)", "TEST.VAL_LOSS_PERIOD", "2"]
        cfg = load_config("", [*train, "TEST.VAL_LOSS_DATASET", "unlabelled"])
        with pytest.raises(ConfigError, match="VAL_LOSS_DATASET: unlabelled has no annotations"):
            check_datasets(cfg, train=True)
        check_datasets(_tested_on("unlabelled"), train=False)
    finally:
        DatasetCatalog.remove("unlabelled")
        MetadataCatalog.remove("unlabelled")
