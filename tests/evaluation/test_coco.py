"""The COCO protocol in memory against pycocotools' own road through files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from d2_cityscapes.data.instances import find_instances
from d2_cityscapes.evaluation.coco import (
    CocoImage,
    coco_scores,
    encode_mask,
    predicted_objects,
    true_objects,
)
from d2_cityscapes.labels import CITYSCAPES

SIZE = (160, 320)  # objects of all three COCO sizes fit


def make_mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = (7, 9)) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        make_mask(),
        make_mask((0, 0, 7, 9)),
        make_mask((2, 3, 5, 6)),
        make_mask((0, 0, 1, 1)),
        make_mask((6, 8, 7, 9)),
        make_mask((4, 2, 7, 4), (0, 4, 3, 6)),  # a run goes on in the next column
        make_mask((0, 2, 7, 5)),
        make_mask((0, 0, 7, 1), (0, 8, 7, 9)),
        *(np.random.default_rng(seed).random((13, 11)) < seed / 10 for seed in range(10)),
    ],
)
def test_rle_is_that_of_pycocotools(mask: np.ndarray) -> None:
    expected = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask) == expected


def detections(true: np.ndarray, seed: int) -> list[dict]:
    """Noisy copies of the instances of a map, some of them wrong, with scores that repeat."""
    rng = np.random.default_rng(seed)
    found = find_instances(true, CITYSCAPES)
    masks = [np.roll(true == i, rng.integers(-2, 3, 2), (0, 1)) for i in found.ids]
    masks += [make_mask((20, 30, 90, 150), size=SIZE), make_mask(size=SIZE)]
    things = [*CITYSCAPES.thing_id_of_train[found.classes], 2, 0]
    scores = rng.integers(1, 8, len(masks)) / 10
    boxes = []
    for mask in masks:
        rows, columns = np.nonzero(mask)
        if len(rows):
            boxes.append([columns.min(), rows.min(), columns.max() + 1.25, rows.max() + 0.75])
        else:
            boxes.append([0, 0, 0, 0])
    return predicted_objects(np.array(boxes), np.array(things), scores, np.array(masks))


@pytest.fixture(scope="module")
def images(paint: Callable) -> dict[str, CocoImage]:
    made = {}
    for seed in range(6):
        true = paint(seed, SIZE, 25)
        found = find_instances(true, CITYSCAPES)
        truth = true_objects(found, true, CITYSCAPES)
        made[f"image{seed}"] = CocoImage(SIZE, truth, detections(true, seed))
    return made


def official(images: dict[str, CocoImage], task: str, folder: Path) -> COCOeval:
    """pycocotools fed with a JSON file of the truth and a list of results, as everybody does it."""
    document: dict[str, list] = {
        "images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in range(len(images))],
        "categories": [{"id": c.thing_id, "name": c.name} for c in CITYSCAPES.things],
        "annotations": [],
    }
    results = []
    for i, name in enumerate(sorted(images)):
        for item in images[name].truth:
            rle = item["segmentation"]
            area = item["bbox"][2] * item["bbox"][3] if task == "bbox" else mask_api.area(rle)
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
            number = len(document["annotations"]) + 1
            document["annotations"].append(
                item
                | {"id": number, "image_id": i, "area": int(area), "segmentation": segmentation}
            )
        dropped = "segmentation" if task == "bbox" else "bbox"
        results += [
            {k: v for k, v in item.items() if k not in (dropped, "iscrowd")} | {"image_id": i}
            for item in images[name].predictions
        ]
    (folder / "truth.json").write_text(json.dumps(document))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(results), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_pycocotools_agrees(task: str, images: dict[str, CocoImage], tmp_path: Path) -> None:
    evaluation = official(images, task, tmp_path)
    scores = coco_scores(images, task, CITYSCAPES)
    values = [value for value, _ in scores.values()]
    stats = 100 * evaluation.stats
    assert values[:6] == pytest.approx(stats[:6].tolist(), abs=1e-9)
    assert scores["AR@100"][0] == pytest.approx(stats[8], abs=1e-9)
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for c in CITYSCAPES.things:
        own = precision[:, :, c.thing_id]
        value, classes = scores[f"AP-{c.name}"]
        if (own == -1).all():
            assert (value, classes) == (None, 0)
        else:
            assert classes == 1
            assert value == pytest.approx(100 * own.mean(), abs=1e-9)
    assert 20 < scores["AP"][0] < 95, "the pictures should be neither trivial nor hopeless"
    assert scores["AP"][1] == 6


def test_order_of_images_does_not_matter(images: dict[str, CocoImage]) -> None:
    backwards = dict(reversed(images.items()))
    assert coco_scores(backwards, "segm", CITYSCAPES) == coco_scores(images, "segm", CITYSCAPES)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_truth_scores_100_and_no_prediction_0(task: str, images: dict[str, CocoImage]) -> None:
    perfect = {
        name: CocoImage(
            SIZE, image.truth, [o | {"score": 1.0} for o in image.truth if not o["iscrowd"]]
        )
        for name, image in images.items()
    }
    assert coco_scores(perfect, task, CITYSCAPES)["AP"][0] == pytest.approx(100)
    nothing = {name: CocoImage(SIZE, image.truth, []) for name, image in images.items()}
    scores = coco_scores(nothing, task, CITYSCAPES)
    assert scores["AP"] == (0, 6)
    assert scores["AR@100"] == (0, 6)
    assert scores["AP-bus"] == (0, 1)
    assert scores["AP-truck"] == (None, 0)


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_nothing_to_find(task: str, images: dict[str, CocoImage]) -> None:
    for image in images.values():
        crowd = [o for o in image.truth if o["iscrowd"]]
        for predictions in (image.predictions, []):
            scores = coco_scores({"a": CocoImage(SIZE, crowd, predictions)}, task, CITYSCAPES)
            assert set(scores.values()) == {(None, 0)}
    assert set(coco_scores({}, task, CITYSCAPES).values()) == {(None, 0)}


def test_areas_follow_the_task() -> None:
    # a box of 40 x 40 around a thin mask: medium as a box, small as a mask
    ids = np.full(SIZE, 7, dtype=np.int32)
    ids[10:50, 10] = ids[10, 10:50] = 24000
    found = find_instances(ids, CITYSCAPES)
    truth = true_objects(found, ids, CITYSCAPES)
    image = CocoImage(SIZE, truth, [truth[0] | {"score": 1.0}])
    boxes, masks = (coco_scores({"a": image}, task, CITYSCAPES) for task in ("bbox", "segm"))
    assert (boxes["APs"], boxes["APm"][1]) == ((None, 0), 1)
    assert (masks["APs"][1], masks["APm"]) == (1, (None, 0))
