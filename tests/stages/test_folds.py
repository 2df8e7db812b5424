"""Cross-validation: nothing of a fold's test pictures is learned from; resumed, refused, scored."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from d2_cityscapes.engine.setup import check_datasets, validation_dataset
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.modeling.anchors.clustering import read_anchors
from d2_cityscapes.shards.reader import ShardError
from d2_cityscapes.stages.folds import Folds, check_kind, plan_folds
from d2_cityscapes.stages.run import StageError

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.fixture
def plan(repository: Path, tmp_path: Path, tiny_opts: list[str]):
    """(folds, opts, stages, configs) -> the folds of the demo's stages in tmp_path."""

    def make(folds: int = 2, opts=(), stages=(1, 2, 3), configs: str = "demo") -> Folds:
        config_dir = repository / "configs" / configs
        opts = [*tiny_opts, "MODEL.FREEZE.MODULES", "[]", *opts]
        return plan_folds(tmp_path, folds, config_dir=config_dir, stages=stages, opts=opts)

    return make


def _images(*names: str) -> set[str]:
    return {record["image_id"] for name in names for record in DatasetCatalog.get(name)}


def test_no_stage_of_a_fold_sees_what_it_is_tested_on(plan) -> None:
    """Training, second images and anchors come from DATASETS.TRAIN, rates from the losses."""
    found = plan(3, ["TEST.VAL_LOSS_PERIOD", "1"], stages=(0, 1, 2, 3, 4))
    tested = []
    for stages in found.plans:
        (name,) = stages[-1].cfg.DATASETS.TEST
        tested.append(_images(name))
        for stage in stages:
            cfg = stage.cfg
            assert (name,) == cfg.DATASETS.TEST
            assert _images(*cfg.DATASETS.TRAIN) == _images("cityscapes_shards_train") - tested[-1]
            assert not _images(validation_dataset(cfg)) & (
                tested[-1] | _images(*cfg.DATASETS.TRAIN)
            )
            check_datasets(cfg, train=True)
        anchors = {stage.anchors for stage in stages[2:]}
        assert anchors == {stages[0].output_dir.parent / "anchors.json"}
    assert [len(images) for images in tested] == list(found.images) == [3, 3, 2]
    assert all(not a & b for a, b in itertools.combinations(tested, 2))
    assert {*itertools.chain(*tested)} == _images("cityscapes_shards_train")


def test_validation_data_of_train_become_val(plan) -> None:
    losses = ["TEST.VAL_LOSS_PERIOD", "1", "TEST.VAL_LOSS_DATASET"]
    for given, expected in (("train_3", "val"), ("val_select", "val_select"), ("val_2", "val_2")):
        found = plan(2, [*losses, f"cityscapes_shards_{given}"], stages=(1,))
        for (stage,) in found.plans:
            assert f"cityscapes_shards_{expected}" == stage.cfg.TEST.VAL_LOSS_DATASET


def test_a_name_that_hides_pictures_of_the_fold_is_refused(plan, datasets: Path) -> None:
    """Another data set of the same folder, which no rule about names knows."""
    from d2_cityscapes.data import register_cityscapes_shards

    name = "mine_shards_sunny"
    register_cityscapes_shards(name, datasets / "cityscapes_shards", split="train")
    try:
        training = f"('cityscapes_shards_train', '{name}')"
        with pytest.raises(StageError, match=r"fold 1, stage 1: mine_shards_sunny has 4 pictures"):
            plan(2, ["DATASETS.TRAIN", training], stages=(1,))
    finally:
        DatasetCatalog.remove(name)


def test_expectations_of_other_data_are_left_out(plan, tiny_opts, repository, tmp_path) -> None:
    at = tiny_opts.index("TEST.EXPECTED_RESULTS")
    opts = [*tiny_opts[:at], *tiny_opts[at + 2 :], "MODEL.FREEZE.MODULES", "[]"]
    config_dir = repository / "configs" / "demo"
    found = plan_folds(tmp_path, 2, config_dir=config_dir, stages=[3], opts=opts)
    assert found.plans[0][0].cfg.TEST.EXPECTED_RESULTS == []
    opts += ["TEST.EXPECTED_RESULTS", "[['segm', 'AP', 50.0, 50.0]]"]
    found = plan_folds(tmp_path, 2, config_dir=config_dir, stages=[3], opts=opts)
    assert found.plans[0][0].cfg.TEST.EXPECTED_RESULTS == [["segm", "AP", 50.0, 50.0]]


def test_mistakes_are_one_line_before_anything_starts(plan, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"9 folds: cityscapes_shards_train has 8 partitions"):
        plan(9)
    for number in (1, 0, -2):
        with pytest.raises(ShardError, match="use 2 or more"):
            plan(number)
    with pytest.raises(StageError, match=r"a\.json may know the pictures that a fold is tested"):
        plan(opts=["MODEL.ANCHOR_GENERATOR.KMEANS.SOURCE", "a.json"], stages=(2,))
    with pytest.raises(StageError, match="neither train nor val of a folder of shards"):
        plan(opts=["DATASETS.TRAIN", "('coco',)", "DATASETS.TEST", "()"])
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_its_folds(plan, tmp_path: Path) -> None:
    plan(2, stages=(1,)).begin(tmp_path)
    plan(2, stages=(1,))
    check_kind(tmp_path, 2)
    with pytest.raises(StageError, match=r"was begun with --folds 2, 3 now: give the same again"):
        plan(3)
    with pytest.raises(StageError, match=r"was begun with --folds 2, none now"):
        check_kind(tmp_path, None)
    record = json.loads((tmp_path / "folds.json").read_text())
    (tmp_path / "folds.json").write_text(json.dumps(record | {"image_names_sha256": "another"}))
    with pytest.raises(StageError, match=r"other folds \(image_names_sha256 in folds\.json\)"):
        plan(2, stages=(1,))
    (tmp_path / "folds.json").write_text("{")
    with pytest.raises(StageError, match=r"folds\.json: does not say how many folds"):
        check_kind(tmp_path, 2)


def test_stages_without_folds_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "stage1").mkdir()
    with pytest.raises(D2CityscapesError, match=r"holds stage1 of a run without --folds"):
        check_kind(tmp_path, 2)
    check_kind(tmp_path, None)


def _command(repository: Path, output: Path, opts: list[str]) -> subprocess.Popen:
    call = [sys.executable, "-W", "ignore", repository / "tools/run_stages.py"]
    call += ["--config-dir", repository / "configs" / "demo", "--output-dir", output]
    call += ["--stages", "2", "--folds", "2", *opts, "SOLVER.CHECKPOINT_PERIOD", "1"]
    call += ["MODEL.FREEZE.MODULES", "[]"]
    with open(output.with_suffix(".txt"), "a") as log:
        return subprocess.Popen(
            [str(part) for part in call],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(repository)},
        )


@pytest.mark.slow
def test_killed_in_the_second_fold_it_ends_with_the_same_table(
    repository: Path, tmp_path: Path, tiny_opts: list[str]
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert _command(repository, whole, tiny_opts).wait() == 0, whole.with_suffix(".txt").read_text()

    first = _command(repository, stopped, tiny_opts)
    while not (stopped / "fold2/stage2/last_checkpoint").is_file():
        assert first.poll() is None, stopped.with_suffix(".txt").read_text()
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (stopped / "folds.md").exists()
    trained = (stopped / "fold1/stage2/model_final.pth").stat().st_mtime_ns
    second = _command(repository, stopped, tiny_opts)
    assert second.wait() == 0, stopped.with_suffix(".txt").read_text()

    assert (stopped / "fold1/stage2/model_final.pth").stat().st_mtime_ns == trained
    for name in ("folds.json", "folds.md", "fold1/anchors.json", "fold2/anchors.json"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    text = stopped.with_suffix(".txt").read_text()
    assert "cityscapes_shards_train: 2 folds, stage2" in text
    for fold in (1, 2):
        about = read_anchors(stopped / f"fold{fold}" / "anchors.json")
        assert about.datasets == (f"cityscapes_shards_train_without_fold_{fold}_of_2",)
        rows, _ = read_results(stopped / f"fold{fold}/stage2/results.json")
        assert {(row.dataset, row.images) for row in rows} == {
            (f"cityscapes_shards_train_fold_{fold}_of_2", 4)
        }
    assert "±" in (stopped / "report.html").read_text()
