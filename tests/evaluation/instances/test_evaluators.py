"""The evaluators of boxes and masks on small shards."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.evaluation.instances.cityscapes import cityscapes_scores, match_masks
from d2_cityscapes.evaluation.instances.evaluators import (
    CityscapesInstanceEvaluator,
    InstanceEvaluator,
)
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances
from d2_cityscapes.shards.reader import open_shard
from d2_cityscapes.shards.writer import write_shards

NAME = "instance_evaluator_scenes"
SIZE = (64, 128)
EVALUATORS = [
    (InstanceEvaluator, ["bbox", "segm"]),
    (CityscapesInstanceEvaluator, ["segm_cityscapes"]),
]


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, array_source, paint: Callable
) -> Iterator[list[dict]]:
    folder = tmp_path_factory.mktemp("shards")
    pixels = np.zeros((*SIZE, 3), dtype=np.uint8)
    sources = [
        array_source(f"town_000000_{i:06d}_leftImg8bit.png", pixels, paint(i, SIZE, 20))
        for i in range(5)
    ]
    write_shards(sources, folder, split="val", partitions=2)
    register_cityscapes_shards(NAME, folder, split="val")
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def true_ids(image: dict) -> np.ndarray:
    return open_shard(image["shard"]).instance_ids(image["index"]).numpy()


def as_output(ids: np.ndarray, seed: int = 0) -> dict:
    """What a model would return that sees the instances of a map."""
    found = find_instances(ids, CITYSCAPES)
    found = found.select(~found.crowd)
    instances = Instances(ids.shape)
    instances.pred_boxes = Boxes(torch.from_numpy(found.boxes.astype(np.float32)))
    instances.pred_classes = torch.from_numpy(CITYSCAPES.thing_id_of_train[found.classes])
    instances.scores = torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1, len(found)))
    instances.pred_masks = torch.from_numpy(ids[None] == found.ids[:, None, None])
    return {"instances": instances}


@pytest.fixture(scope="module")
def outputs(inputs: list[dict], disturb: Callable) -> list[dict]:
    return [as_output(disturb(true_ids(image), i), i) for i, image in enumerate(inputs)]


@pytest.mark.parametrize(("make", "tasks"), EVALUATORS)
def test_truth_scores_100_and_nothing_0(make: type, tasks: list[str], inputs: list[dict]) -> None:
    evaluator = make(NAME, tasks)
    evaluator.process(inputs, [as_output(true_ids(image)) for image in inputs])
    results = evaluator.evaluate()
    assert list(results) == tasks
    for task in tasks:
        assert results[task]["AP"] == results[task]["AP50"] == pytest.approx(100)
        assert math.isnan(results[task]["AP-train"])
    evaluator.reset()
    evaluator.process(inputs, [as_output(np.zeros(SIZE, dtype=int)) for _ in inputs])
    results = evaluator.evaluate()
    assert {results[task]["AP"] for task in tasks} == {0}
    evaluator.reset()
    assert all(
        math.isnan(value) for scores in evaluator.evaluate().values() for value in scores.values()
    )
    assert {(row.value, row.images) for row in evaluator.rows} == {(None, 0)}


def test_rows_say_their_protocol(inputs: list[dict], outputs: list[dict]) -> None:
    protocols = {}
    for make, tasks in EVALUATORS:
        evaluator = make(NAME, tasks)
        evaluator.process(inputs, outputs)
        results = evaluator.evaluate()
        assert len(evaluator.rows) == sum(map(len, results.values()))
        protocols |= {(row.task, row.metric): row.protocol for row in evaluator.rows}
    for task in ("bbox", "segm"):
        assert protocols[task, "AP"] == protocols[task, "AR@100"] == "COCO"
        assert protocols[task, "APs"] == protocols[task, "APl"] == "COCO, sizes by box"
    assert protocols["segm", "APm_mask"] == "COCO"
    assert protocols["segm_cityscapes", "AP"] == "Cityscapes"
    assert ("bbox", "APs_mask") not in protocols


def test_cityscapes_is_the_plain_score(inputs: list[dict], outputs: list[dict]) -> None:
    matches = {}
    for image, output in zip(inputs, outputs, strict=True):
        ids, found = true_ids(image), output["instances"]
        matches[image["image_id"]] = match_masks(
            found.pred_masks.numpy(), found.pred_classes.numpy(), found.scores.numpy(), ids,
            find_instances(ids, CITYSCAPES), CITYSCAPES,
        )  # fmt: skip
    expected = cityscapes_scores(matches, CITYSCAPES)
    evaluator = CityscapesInstanceEvaluator(NAME, ["segm_cityscapes"])
    evaluator.process(inputs, outputs)
    evaluator.evaluate()
    assert {row.metric: (row.value, row.classes) for row in evaluator.rows} == expected
    assert 0 < expected["AP"][0] < 100


@pytest.mark.parametrize(("make", "tasks"), EVALUATORS)
def test_ranks_share_the_images(
    make: type, tasks: list[str], inputs: list[dict], outputs: list[dict],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = make(NAME, tasks)
    whole.process(inputs, outputs)
    expected = whole.evaluate()
    parts = []
    monkeypatch.setattr(comm, "gather", lambda own: parts.append(own) or parts)
    for rows in (slice(0, 3), slice(2, 5)):  # one image is seen twice
        rank = make(NAME, tasks)
        rank.process(inputs[rows], outputs[rows])
        results = rank.evaluate()
    for task in tasks:
        assert results[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)
    assert {row.images for row in rank.rows} == {5}


def test_only_what_was_processed_is_scored(inputs: list[dict]) -> None:
    for make, tasks in EVALUATORS:
        evaluator = make(NAME, tasks)
        evaluator.process(inputs[:2], [as_output(true_ids(image)) for image in inputs[:2]])
        assert evaluator.evaluate()[tasks[-1]]["AP"] == pytest.approx(100)
        assert {row.images for row in evaluator.rows} == {2}


def test_boxes_do_not_need_masks(inputs: list[dict], outputs: list[dict]) -> None:
    both, boxes = InstanceEvaluator(NAME, ["bbox", "segm"]), InstanceEvaluator(NAME, ["bbox"])
    both.process(inputs, outputs)
    for image, output in zip(inputs, outputs, strict=True):
        found = Instances(output["instances"].image_size, **output["instances"].get_fields())
        found.remove("pred_masks")
        boxes.process([image], [{"instances": found}])
    assert boxes.evaluate()["bbox"] == pytest.approx(both.evaluate()["bbox"], nan_ok=True)


def test_masks_need_no_boxes(inputs: list[dict], outputs: list[dict]) -> None:
    """Some models return empty boxes beside their masks."""
    expected, scores = [], []
    for make, tasks in ((InstanceEvaluator, ["segm"]), EVALUATORS[1]):
        evaluator = make(NAME, tasks)
        evaluator.process(inputs, outputs)
        expected.append(evaluator.evaluate())
        evaluator.reset()
        for image, output in zip(inputs, outputs, strict=True):
            found = Instances(output["instances"].image_size, **output["instances"].get_fields())
            found.pred_boxes = Boxes(torch.zeros(len(found), 4))
            evaluator.process([image], [{"instances": found}])
        scores.append(evaluator.evaluate())
    for mine, theirs in zip(scores, expected, strict=True):
        for task in theirs:
            assert mine[task] == pytest.approx(theirs[task], nan_ok=True)


@pytest.mark.parametrize(("make", "tasks"), EVALUATORS)
def test_prediction_of_another_size_is_refused(
    make: type, tasks: list[str], inputs: list[dict]
) -> None:
    with pytest.raises(InvalidMapError, match=r"\(32, 128\) for town_000000_000000.*\(64, 128\)"):
        make(NAME, tasks).process(inputs[:1], [as_output(true_ids(inputs[0])[:32])])


@pytest.mark.parametrize(("evaluator", "tasks"), EVALUATORS)
def test_what_the_data_cannot_have_is_refused(inputs: list[dict], evaluator, tasks) -> None:
    """A model of COCO's 80 classes, or one that has diverged, gets no score: it gets a line."""
    image = inputs[0]
    for attribute, wrong, word in (
        ("pred_classes", 8, "class 8.*8 thing classes"),
        ("pred_classes", 79, "class 79"),
        ("pred_classes", -1, "class -1"),
        ("scores", math.nan, "score is nan"),
        ("scores", math.inf, "score is inf"),
        ("pred_boxes", math.nan, "box is nan"),
    ):
        output = as_output(true_ids(image))
        values = getattr(output["instances"], attribute)
        (values.tensor if attribute == "pred_boxes" else values)[-1] = wrong
        with pytest.raises(InvalidMapError, match=f"{image['image_id']}: instances.*{word}"):
            evaluator(NAME, tasks).process([image], [output])
