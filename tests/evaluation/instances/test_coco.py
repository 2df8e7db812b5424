"""The COCO protocol in memory against pycocotools' own road through files."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2_cityscapes.evaluation.instances.coco import BOX_SIZE_PROTOCOL, PROTOCOL, coco_scores
from d2_cityscapes.evaluation.instances.coco_matching import (
    CocoObjects,
    match_objects,
    predicted_objects,
    true_objects,
)
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances

SIZE = (160, 320)  # objects of all three COCO sizes fit

Pair = tuple[CocoObjects, CocoObjects]  # the truth and the predictions of an image


def noisy(ids: np.ndarray, seed: int) -> Pair:
    """Shifted copies of the instances of a map, some of them wrong, with scores that repeat."""
    rng = np.random.default_rng(seed)
    found = find_instances(ids, CITYSCAPES)
    shift = max(2, min(ids.shape) // 60)
    masks = [np.roll(ids == i, rng.integers(-shift, shift, 2), (0, 1)) for i in found.ids] * 2
    masks += [ids == 7, np.zeros(ids.shape, dtype=bool)]
    things = [*CITYSCAPES.thing_id_of_train[found.classes], *rng.integers(0, 8, len(found)), 2, 0]
    scores = rng.integers(1, 8, len(masks)) / 10
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        if len(rows):
            boxes.append([columns.min(), rows.min(), columns.max() + 1.25, rows.max() + 0.75])
        else:
            boxes.append([0, 0, 0, 0])
    predictions = predicted_objects(np.array(boxes), np.array(things), scores, np.array(masks))
    return true_objects(found, ids, CITYSCAPES), predictions


@pytest.fixture(scope="module")
def images(paint: Callable) -> list[Pair]:
    return [noisy(paint(seed, SIZE, 25), seed) for seed in range(6)]


def scores_of(images: Sequence[Pair], task: str) -> dict[str, tuple[float | None, int]]:
    """All metrics of both protocols."""
    matches = {
        f"image{i}": match_objects(truth, predictions, task, CITYSCAPES)
        for i, (truth, predictions) in enumerate(images)
    }
    by_protocol = coco_scores(matches, task, CITYSCAPES)
    assert list(by_protocol) == [PROTOCOL, BOX_SIZE_PROTOCOL]
    scores = by_protocol[PROTOCOL] | by_protocol[BOX_SIZE_PROTOCOL]
    assert len(scores) == sum(map(len, by_protocol.values()))
    return scores


def xywh(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()


def official(images: Sequence[Pair], task: str, area: str) -> COCOeval:
    """pycocotools fed with a JSON document of the truth and a list of results, as usual.

    The areas, which it takes from the truth's document, are those of the "box" or of the "mask".
    """
    shape = images[0][0].masks[0]["size"]
    document: dict[str, list] = {
        "images": [{"id": i, "height": shape[0], "width": shape[1]} for i in range(len(images))],
        "categories": [{"id": c.thing_id, "name": c.name} for c in CITYSCAPES.things],
        "annotations": [],
    }
    results = []
    for i, (truth, predictions) in enumerate(images):
        for thing_id, box, rle, crowd in zip(
            truth.thing_ids.tolist(), xywh(truth.boxes), truth.masks, truth.crowd, strict=True
        ):
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": i,
                    "category_id": thing_id,
                    "bbox": box,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "area": box[2] * box[3] if area == "box" else int(mask_api.area(rle)),
                    "iscrowd": int(crowd),
                }
            )
        for thing_id, box, rle, score in zip(
            predictions.thing_ids.tolist(),
            xywh(predictions.boxes),
            predictions.masks,
            predictions.scores.tolist(),
            strict=True,
        ):
            shape = {"bbox": box} if task == "bbox" else {"segmentation": rle}
            results.append({"image_id": i, "category_id": thing_id, "score": score, **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(document))
        truth.createIndex()
        found = truth.loadRes(results)
        if area == "box":
            for item in found.dataset["annotations"]:
                item["area"] = item["bbox"][2] * item["bbox"][3]
        evaluation = COCOeval(truth, found, task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def percent(value: float) -> float | None:
    return None if value == -1 else pytest.approx(100 * value, abs=1e-9)


def check(images: Sequence[Pair], task: str) -> dict[str, tuple[float | None, int]]:
    """Compare every number with pycocotools'."""
    scores = scores_of(images, task)
    evaluation = official(images, task, "box")
    metrics = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    expected = dict(zip(metrics, evaluation.stats[:6], strict=True))
    expected["AR@100"] = evaluation.stats[8]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    expected |= {f"AP-{c.name}": precision[:, :, c.thing_id].mean() for c in CITYSCAPES.things}
    if task == "segm":
        sizes = official(images, task, "mask").stats[3:6]
        expected |= zip(("APs_mask", "APm_mask", "APl_mask"), sizes, strict=True)
    assert {metric: value for metric, (value, _) in scores.items()} == {
        metric: percent(value) for metric, value in expected.items()
    }
    return scores


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_pycocotools_agrees(task: str, images: list[Pair]) -> None:
    scores = check(images, task)
    assert 10 < scores["AP"][0] < 95, "the pictures should be neither trivial nor hopeless"
    assert None not in (scores["APs"][0], scores["APm"][0], scores["APl"][0])
    assert scores["AP"][1] == 6
    assert scores["AP-car"][1] == 1
    assert scores["AP-truck"] == (None, 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), task=st.sampled_from(["bbox", "segm"]))
def test_pycocotools_agrees_on_crowded_pictures(paint: Callable, seed: int, task: str) -> None:
    """Objects that overlap, equal IoUs, crowds, and detections of several objects."""
    check([noisy(paint(seed + i, (24, 40), 40), seed) for i in range(2)], task)


def test_only_the_best_100_detections_of_a_class_count(images: list[Pair]) -> None:
    truth, predictions = images[0]
    many = CocoObjects(
        thing_ids=np.tile(predictions.thing_ids, 40),
        boxes=np.tile(predictions.boxes, (40, 1)),
        masks=predictions.masks * 40,
        scores=np.linspace(0.1, 0.9, 40 * len(predictions.scores)),
        crowd=np.tile(predictions.crowd, 40),
    )
    assert np.bincount(many.thing_ids).max() > 100
    for task in ("bbox", "segm"):
        check([(truth, many)], task)


def test_order_of_images_does_not_matter(images: list[Pair]) -> None:
    matches = {
        f"image{i}": match_objects(*pair, "segm", CITYSCAPES) for i, pair in enumerate(images)
    }
    backwards = dict(reversed(matches.items()))
    assert coco_scores(backwards, "segm", CITYSCAPES) == coco_scores(matches, "segm", CITYSCAPES)


def select(objects: CocoObjects, rows: np.ndarray) -> CocoObjects:
    return CocoObjects(
        objects.thing_ids[rows],
        objects.boxes[rows],
        [objects.masks[row] for row in np.flatnonzero(rows)],
        objects.scores[rows],
        objects.crowd[rows],
    )


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_truth_scores_100_and_no_prediction_0(task: str, images: list[Pair]) -> None:
    perfect = [(truth, select(truth, ~truth.crowd)) for truth, _ in images]
    assert scores_of(perfect, task)["AP"][0] == pytest.approx(100)
    nothing = [(truth, select(truth, np.zeros(len(truth.scores), bool))) for truth, _ in images]
    scores = scores_of(nothing, task)
    assert scores["AP"] == scores["AR@100"] == (0, 6)
    assert scores["AP-bus"] == (0, 1)
    assert scores["AP-truck"] == (None, 0)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_nothing_to_find(task: str, images: list[Pair]) -> None:
    truth, predictions = images[0]
    none = np.zeros(len(predictions.scores), dtype=bool)
    for true in (select(truth, truth.crowd), select(truth, np.zeros(len(truth.crowd), bool))):
        for found in (predictions, select(predictions, none)):
            assert set(scores_of([(true, found)], task).values()) == {(None, 0)}
    assert set(scores_of([], task).values()) == {(None, 0)}


def test_a_crowd_forgives_but_cannot_be_found() -> None:
    ids = np.full(SIZE, 7, dtype=np.int32)
    ids[:40] = 26
    ids[100:140, :40] = 26000
    truth = true_objects(find_instances(ids, CITYSCAPES), ids, CITYSCAPES)
    masks = np.zeros((3, *SIZE), dtype=bool)
    masks[0, 5:25, 5:25] = masks[1, 5:25, 30:60] = True  # both in the crowd
    masks[2] = ids == 26000
    boxes = np.array([[5, 5, 25, 25], [30, 5, 60, 25], [0, 100, 40, 140]])
    predictions = predicted_objects(boxes, np.full(3, 2), np.array([0.9, 0.8, 0.7]), masks)
    for task in ("bbox", "segm"):
        assert scores_of([(truth, predictions)], task)["AP"] == (pytest.approx(100), 1)
        elsewhere = replace(predictions, thing_ids=np.array([0, 2, 2]))
        assert scores_of([(truth, elsewhere)], task)["AP"] == (pytest.approx(100), 1)
        alone = replace(truth, crowd=np.zeros(2, dtype=bool))
        assert scores_of([(alone, predictions)], task)["AP"][0] < 50


def test_sizes_by_box_and_by_mask() -> None:
    # a box of 40 x 40 around a thin mask: medium as a box, small as a mask
    ids = np.full(SIZE, 7, dtype=np.int32)
    ids[10:50, 10] = ids[10, 10:50] = 24000
    truth = true_objects(find_instances(ids, CITYSCAPES), ids, CITYSCAPES)
    for task in ("bbox", "segm"):
        scores = scores_of([(truth, truth)], task)
        assert (scores["APs"], scores["APm"][1], scores["APl"]) == ((None, 0), 1, (None, 0))
    assert (scores["APs_mask"][1], scores["APm_mask"], scores["APl_mask"][1]) == (1, (None, 0), 0)


@pytest.mark.parametrize(("side", "sizes"), [(32, "sm"), (33, "m"), (31, "s"), (96, "ml")])
def test_a_limit_belongs_to_both_sizes(side: int, sizes: str) -> None:
    ids = np.full(SIZE, 7, dtype=np.int32)
    ids[:side, :side] = 24000
    truth = true_objects(find_instances(ids, CITYSCAPES), ids, CITYSCAPES)
    scores = scores_of([(truth, truth)], "segm")
    for suffix in ("", "_mask"):
        assert "".join(s for s in "sml" if scores[f"AP{s}{suffix}"][1]) == sizes


def test_matches_are_small_and_travel(images: list[Pair]) -> None:
    matches = match_objects(*images[0], "segm", CITYSCAPES)
    sent = pickle.dumps(matches)
    assert len(sent) < 1000 + 170 * len(matches.scores)
    again = pickle.loads(sent)
    assert coco_scores({"a": again}, "segm", CITYSCAPES) == coco_scores(
        {"a": matches}, "segm", CITYSCAPES
    )
