"""From Vistas to Cityscapes: two stages of other classes, with the heads mapped between them."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from vistas_tree import make_vistas_tree

from d2_cityscapes.data import write_shards
from d2_cityscapes.engine.setup import load_config
from d2_cityscapes.engine.trainer import setup, train
from d2_cityscapes.labels import CITYSCAPES, IDD, VISTAS
from d2_cityscapes.labels.record import CLASSES, class_record
from d2_cityscapes.sources.vistas import find_splits
from d2_cityscapes.stages import run as stages_room
from d2_cityscapes.stages.folds import plan_folds
from d2_cityscapes.stages.handover import find_handover
from d2_cityscapes.stages.run import plan_stages, run_stages

PREDICTORS = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_head.predictor")


@pytest.fixture
def root(tmp_path: Path, datasets_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DETECTRON2_DATASETS with the small scenes, and a small Vistas from its own files."""
    root = tmp_path / "datasets"
    root.mkdir()
    (root / "cityscapes_shards").symlink_to(datasets_root / "cityscapes_shards")
    sizes = {"a": (64, 128), "b": (64, 128)}
    tree = make_vistas_tree(tmp_path / "vistas", sizes)
    for split, sources in find_splits(tree, ["train", "val"], canvas=(64, 128)).items():
        write_shards(sources, root / "vistas_shards", split=split, partitions=1, table=VISTAS)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    return root


@pytest.fixture
def config_dir(repository: Path, tmp_path: Path) -> Path:
    """The recipe's settings of classes and data over the small panoptic network."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in ("stage0", "stage1"):
        cfg = load_config(repository / "configs" / "vistas_to_cityscapes" / f"{name}.yaml")
        text = [
            f"_BASE_: {repository}/configs/quick/panoptic.yaml",
            "MODEL:",
            f"  ROI_HEADS: {{NUM_CLASSES: {cfg.MODEL.ROI_HEADS.NUM_CLASSES}}}",
            f"  SEM_SEG_HEAD: {{NUM_CLASSES: {cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES}}}",
            "  ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: False}",
            f"DATASETS: {{TRAIN: {[*cfg.DATASETS.TRAIN]}, TEST: {[*cfg.DATASETS.TEST]}}}",
        ]
        (folder / f"{name}.yaml").write_text("\n".join(text) + "\n")
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings as `train_in_fresh_process` has them, without the seconds that a process takes."""

    def train_here(config_file: Path, opts: Sequence[str]) -> int:
        args = argparse.Namespace(config_file=str(config_file), opts=list(opts), eval_only=False)
        train(setup(args), resume=True, allow_unused={*opts[::2]})
        return 0

    monkeypatch.setattr(stages_room, "train_in_fresh_process", train_here)


@pytest.mark.usefixtures("in_this_process")
def test_two_stages_with_mapped_heads(
    root: Path, config_dir: Path, tmp_path: Path, tiny_opts: list[str], capsys
) -> None:
    output = tmp_path / "out"
    opts = [*tiny_opts, "SOLVER.MAX_ITER", "1", "SOLVER.BASE_LR", "1e-9", "TEST.NUM_PICTURES", "0"]

    def plan(stages=(0, 1)):
        return plan_stages(output, config_dir=config_dir, stages=stages, opts=opts)

    run_stages(plan())
    said = capsys.readouterr().out
    assert "things: rows of 7 of 8 taken from vistas in 6 tensors" in said
    assert "at random (seed 0): train" in (output / "stage1" / "log.txt").read_text()
    before, after = (
        torch.load(output / f"stage{n}" / "model_final.pth", weights_only=True) for n in (0, 1)
    )
    assert before[CLASSES] == class_record(VISTAS) and after[CLASSES] == class_record(CITYSCAPES)
    theirs, ours = ([c.name for c in table.things] for table in (VISTAS, CITYSCAPES))
    car, vistas_car = ours.index("car"), theirs.index("Car")
    for layer in PREDICTORS:
        each = 4 if layer.endswith("bbox_pred") else 1
        old, new = (x["model"][f"roi_heads.{layer}.weight"] for x in (before, after))
        assert len(old) // 37 == each and len(new) // 8 == each
        ends = [slice(each * k, each * (k + 1)) for k in (vistas_car, car)]
        # one step of 1e-9 away
        torch.testing.assert_close(new[ends[1]], old[ends[0]], atol=1e-6, rtol=0)
    road = before["model"]["sem_seg_head.predictor.weight"][13]  # in Vistas
    torch.testing.assert_close(
        after["model"]["sem_seg_head.predictor.weight"][0], road, atol=1e-6, rtol=0
    )
    assert plan()[1].is_done

    # what was handed on is lost: it is made again, the same
    (output / "stage0" / "mapped.pth").unlink()
    shutil.rmtree(root / "vistas_shards")
    run_stages(plan((1,)))
    assert "already done" in capsys.readouterr().out


@pytest.mark.usefixtures("root")
def test_folds_are_of_the_last_stage_alone(config_dir: Path, tmp_path: Path, tiny_opts) -> None:
    found = plan_folds(tmp_path / "out", 2, config_dir=config_dir, stages=[0, 1], opts=tiny_opts)
    for k, (before, after) in enumerate(found.plans, 1):
        assert before.cfg.DATASETS.TRAIN == ("vistas_shards_train",)
        assert before.cfg.DATASETS.TEST == ("vistas_shards_val",)
        assert (f"cityscapes_shards_train_without_fold_{k}_of_2",) == after.cfg.DATASETS.TRAIN
        assert after.handover and after.handover.tables == (VISTAS, CITYSCAPES)


def test_which_weights_are_mapped(repository: Path) -> None:
    def cfg(name: str, *opts: str):
        return load_config(repository / "configs" / name, ["MODEL.DEVICE", "cpu", *opts])

    vistas, ours = (cfg(f"vistas_to_cityscapes/stage{n}.yaml") for n in (0, 1))
    idd = cfg("idd_to_cityscapes/stage0.yaml")
    weights = Path("out/stage0/model_final.pth")
    found = find_handover(vistas, ours, weights)
    assert found and found.tables == (VISTAS, CITYSCAPES)
    assert found.output == Path("out/stage0/mapped.pth")
    found = find_handover(idd, ours, weights)
    assert found and found.tables == (IDD, CITYSCAPES)
    assert find_handover(ours, ours, weights) is None
    deeplab = cfg("quick/deeplab.yaml", "DATASETS.TRAIN", "('vistas_shards_train',)")
    found = find_handover(deeplab, ours, weights)  # its head is left behind
    assert found and found.tables is None and found.output.name == "backbone.pth"
