"""Weights remember the classes that they were trained for, through training, average and tools."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn

from d2_cityscapes.data import register_cityscapes_shards, write_shards
from d2_cityscapes.engine.checkpoints.checkpointer import Checkpointer, CheckpointError
from d2_cityscapes.engine.prediction import Predictor
from d2_cityscapes.engine.trainer import Trainer, evaluate, setup, train
from d2_cityscapes.labels import CITYSCAPES, IDD, LabelClass, LabelTable
from d2_cityscapes.labels.record import CLASSES, class_record


def make_table(name: str, *things: str, stuff: tuple[str, ...] = ()) -> LabelTable:
    names = (*things, *stuff)
    classes = tuple(
        LabelClass(name, i + 1, i, i if i < len(things) else None, (20 * i, 99, 9))
        for i, name in enumerate(names)
    )
    return LabelTable(name, classes, ((0, "void"), *((c.label_id, c.name) for c in classes)))


FIRST = make_table("first", "truck", "bicycle")
SECOND = make_table("second", "bicycle", "truck")


class Heads(nn.Module):
    """Predictors by their names in Detectron2, for two things and four classes."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.roi_heads = nn.ModuleDict(
            {
                "box_predictor": nn.ModuleDict(
                    {"cls_score": nn.Linear(3, 3), "bbox_pred": nn.Linear(3, 4)}
                )
            }
        )
        self.sem_seg_head = nn.ModuleDict({"predictor": nn.Conv2d(3, 4, 1)})


@pytest.fixture
def saved(tmp_path):
    """(table) -> file of `Heads` that were trained for it; None: weights that do not tell."""

    def save(table: LabelTable | None) -> str:
        Checkpointer(Heads(), str(tmp_path), table=table).save("model")
        return str(tmp_path / "model.pth")

    return save


def test_the_record_is_plain_and_beside_the_weights(saved, tmp_path):
    content = torch.load(saved(FIRST), weights_only=True)
    assert content[CLASSES] == {
        "table": "first",
        "hash": FIRST.hash,
        "things": ["truck", "bicycle"],
        "classes": ["truck", "bicycle"],
    }
    Checkpointer(Heads(), table=FIRST).save_weights(tmp_path / "weights.pth")
    assert torch.load(tmp_path / "weights.pth", weights_only=True)[CLASSES] == content[CLASSES]
    assert CLASSES not in torch.load(saved(None), weights_only=True)


def test_other_classes_are_refused_in_use_and_resume(saved, tmp_path):
    path = saved(FIRST)
    for load in (
        lambda: Checkpointer(Heads(), table=SECOND).load(path),
        lambda: Checkpointer(Heads(), str(tmp_path), table=SECOND).resume_or_load("", resume=True),
    ):
        with pytest.raises(CheckpointError) as caught:
            load()
        message = str(caught.value)
        assert "\n" not in message and message.startswith(f"{path}: trained for the things of ")
        assert "first (0 truck, 1 bicycle)" in message and "second (0 bicycle, 1 truck)" in message
    Checkpointer(Heads(), table=FIRST).load(path)
    Checkpointer(Heads()).load(path)  # nobody says what the data is
    Checkpointer(Heads(), table=SECOND).load(saved(None))


def start(path: str, table: LabelTable, *exclude: str) -> None:
    Checkpointer(Heads(), table=table, exclude=exclude).resume_or_load(path, resume=False)


def test_a_training_does_not_take_over_rows_with_another_meaning(saved):
    path = saved(FIRST)
    with pytest.raises(CheckpointError) as caught:
        start(path, SECOND)
    message = str(caught.value)
    assert "first (0 truck, 1 bicycle)" in message and "\n" not in message
    assert "MODEL.WEIGHTS_EXCLUDE ['roi_heads.box_predictor.cls_score.weight', " in message
    assert "bbox_pred" not in message  # the same for all classes
    assert "sem_seg_head" not in message  # has four rows, and there are two classes
    start(path, SECOND, "roi_heads.box_predictor.cls_score.*")
    start(path, make_table("third", "truck", "bicycle", "van", "bus", "car"))  # no head fits
    start(saved(None), SECOND)


def test_only_the_kind_that_differs_is_looked_at(saved):
    old = make_table("old", "truck", "bicycle", stuff=("road", "sky"))
    new = make_table("new", "truck", "bicycle", stuff=("sky", "road"))
    with pytest.raises(CheckpointError) as caught:
        start(saved(old), new)
    assert "['sem_seg_head.predictor.weight', 'sem_seg_head.predictor.bias']" in str(caught.value)
    start(saved(old), new, "sem_seg_head.*")


# --- with trainer and data ---


@pytest.fixture
def shards(tmp_path, array_source):
    """(table) -> name of a dataset with four images of it, each with two things."""
    registered = []

    def write(table: LabelTable) -> str:
        name = f"classes_{table.name}"
        if name in registered:
            return name
        ids = np.zeros((64, 128), np.int32)
        ids[10:40, 10:50] = 1000 * table.things[0].label_id
        ids[20:60, 60:110] = 1000 * table.things[1].label_id
        pixels = np.repeat((ids[..., None] // 300 % 256).astype(np.uint8), 3, axis=2)
        sources = [array_source(f"image_{k}.png", pixels, ids) for k in range(4)]
        write_shards(sources, tmp_path / table.name, split="train", table=table)
        register_cityscapes_shards(name, tmp_path / table.name, split="train", table=table)
        registered.append(name)
        return name

    yield write
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def configure(repository, tmp_path, shards):
    """(table, overrides) -> config of a small Mask R-CNN on data of it."""

    def make(table: LabelTable, *opts: str, eval_only: bool = False):
        name = shards(table)
        args = argparse.Namespace(
            config_file=str(repository / "configs/quick/instance.yaml"),
            opts=[
                "DATASETS.TRAIN", f"('{name}',)", "DATASETS.TEST", f"('{name}',)",
                "MODEL.ROI_HEADS.NUM_CLASSES", str(len(table.things)), "SOLVER.MAX_ITER", "2",
                "DATALOADER.NUM_WORKERS", "0", "TEST.NUM_PICTURES", "0",
                "TEST.EXPECTED_RESULTS", "[]", "OUTPUT_DIR", str(tmp_path / f"{table.name}_out"),
                *opts,
            ],
            eval_only=eval_only,
        )  # fmt: skip
        return setup(args)

    return make


def test_classes_in_another_order(configure, tmp_path):
    """What was trained on (truck, bicycle) is not evaluated on (bicycle, truck)."""
    train(configure(FIRST, "SOLVER.EMA_DECAY", "0.5"))
    for name in ("model_final", "model_final_ema"):
        path = tmp_path / "first_out" / f"{name}.pth"
        assert torch.load(path, weights_only=True)[CLASSES] == class_record(FIRST)
        cfg = configure(SECOND, "MODEL.WEIGHTS", str(path), eval_only=True)
        for use in (evaluate, Predictor, lambda cfg: Trainer(cfg).resume_or_load(resume=False)):
            with pytest.raises(CheckpointError, match=r"first \(0 truck, 1 bicycle\)"):
                use(cfg)
    assert not list((tmp_path / "second_out").rglob("results.json"))


def test_an_instance_model_of_another_dataset(configure, tmp_path):
    """Cityscapes' classes by number are not IDD's."""
    train(configure(CITYSCAPES))
    weights = ["MODEL.WEIGHTS", str(tmp_path / "cityscapes_out/model_final.pth")]
    cfg = configure(IDD, *weights, eval_only=True)
    with pytest.raises(CheckpointError, match=r"cityscapes \(2 car, .* of idd \(2 motorcycle, "):
        evaluate(cfg)
    names = [c.name for c in IDD.things][: len(CITYSCAPES.things)]
    cfg = configure(make_table("eight", *names), *weights, eval_only=True)
    with pytest.raises(CheckpointError, match=r"cityscapes \(2 car, .* of eight \(2 motorcycle, "):
        evaluate(cfg)
