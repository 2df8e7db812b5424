"""Scoring of files: cityscapesscripts as referee, workers, missing and extra predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import (
    average_pq,
    pq_compute_single_core,
)
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.files import PanopticFiles, find_panoptic_files
from d2_cityscapes.evaluation.panoptic.quality import PanopticQuality
from d2_cityscapes.evaluation.panoptic.scoring import missing_predictions, score_files
from d2_cityscapes.labels import CITYSCAPES

IMAGES = 12
NAMES = [f"town_{seed:06d}_000019" for seed in range(IMAGES)]


@pytest.fixture(scope="module")
def maps(paint: Callable, disturb: Callable) -> dict[str, list[np.ndarray]]:
    truths = [paint(seed) for seed in range(IMAGES)]
    return {"truth": truths, "prediction": [disturb(t, i) for i, t in enumerate(truths)]}


@pytest.fixture(scope="module")
def folder(maps: dict[str, list[np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth/ and prediction/, with val/ of instance ids and what createPanopticImgs makes of it."""
    root = tmp_path_factory.mktemp("panoptic")
    for role, all_ids in maps.items():
        (root / role / "val" / "town").mkdir(parents=True)
        for name, ids in zip(NAMES, all_ids, strict=True):
            path = root / role / "val" / "town" / f"{name}_gtFine_instanceIds.png"
            Image.fromarray(ids.astype(np.uint16)).save(path)
        convert2panoptic(str(root / role), str(root / role), False, ["val"])
    return root


def pngs(folder: Path, role: str) -> PanopticFiles:
    return find_panoptic_files(folder / role / "val", truth=role == "truth")


def coco(folder: Path, role: str) -> PanopticFiles:
    return find_panoptic_files(
        folder / role / "cityscapes_panoptic_val.json", truth=role == "truth"
    )


def official(folder: Path) -> tuple[dict, dict]:
    """Counts and averages of cityscapesscripts."""
    jsons = {
        role: folder / role / "cityscapes_panoptic_val.json" for role in ("truth", "prediction")
    }
    truth, prediction = (json.loads(path.read_text()) for path in jsons.values())
    predicted = {a["image_id"]: a for a in prediction["annotations"]}
    pairs = [(a, predicted[a["image_id"]]) for a in truth["annotations"]]
    categories = {c["id"]: c for c in truth["categories"]}
    stat = pq_compute_single_core(
        0, pairs, *(str(p.with_suffix("")) for p in jsons.values()), categories
    )
    return stat, average_pq(stat, categories)


def agree(quality: PanopticQuality, referee: tuple[dict, dict]) -> None:
    stat, averages = referee
    result = quality.compute()
    assert quality.state()[1:4].sum(axis=1).min() > 20, "the pictures should hold all of them"
    for c in CITYSCAPES.classes:
        ours = result["per_class"][c.name]
        assert [ours[k] for k in ("tp", "fp", "fn")] == [
            getattr(stat[c.label_id], k) for k in ("tp", "fp", "fn")
        ]
        for metric in ("PQ", "SQ", "RQ"):  # an absent class is 0 there
            theirs = 100 * averages["per_class"][c.label_id][metric.lower()]
            assert (ours[metric] or 0) == pytest.approx(theirs, abs=1e-9)
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for metric in ("PQ", "SQ", "RQ"):
            theirs = 100 * averages[group][metric.lower()]
            assert result[metric + suffix] == pytest.approx(theirs, abs=1e-9)


# the referee --------------------------------------------------------------------------------------


def test_coco_panoptic_scores_as_cityscapesscripts(folder: Path, capsys) -> None:
    """A predicted group is a segment like any other there, and so it is here."""
    referee = official(folder)
    agree(score_files(coco(folder, "truth"), coco(folder, "prediction")), referee)
    agree(score_files(pngs(folder, "truth"), coco(folder, "prediction")), referee)


def test_instance_ids_score_as_cityscapesscripts(
    folder: Path, maps: dict[str, list[np.ndarray]], tmp_path: Path, capsys
) -> None:
    """Predictions without groups, which in a map of instance ids are void."""
    (tmp_path / "truth").symlink_to(folder / "truth")
    predictions = tmp_path / "prediction"
    (predictions / "val" / "town").mkdir(parents=True)
    for name, ids in zip(NAMES, maps["prediction"], strict=True):
        path = predictions / "val" / "town" / f"{name}_gtFine_instanceIds.png"
        Image.fromarray(np.where(np.isin(ids, [24, 26]), 0, ids).astype(np.uint16)).save(path)
    convert2panoptic(str(predictions), str(predictions), False, ["val"])
    referee = official(tmp_path)
    agree(score_files(pngs(tmp_path, "truth"), pngs(tmp_path, "prediction")), referee)
    agree(score_files(coco(tmp_path, "truth"), pngs(tmp_path, "prediction")), referee)
    agree(score_files(coco(tmp_path, "truth"), coco(tmp_path, "prediction")), referee)


# workers, missing and extra predictions -----------------------------------------------------------


def test_workers_change_nothing(folder: Path, maps: dict[str, list[np.ndarray]]) -> None:
    in_memory = PanopticQuality()
    for prediction, truth in zip(maps["prediction"], maps["truth"], strict=True):
        in_memory.update(prediction, truth)
    for workers in (1, 2, 50):
        quality = score_files(pngs(folder, "truth"), pngs(folder, "prediction"), workers=workers)
        np.testing.assert_array_equal(quality.state(), in_memory.state())
    with pytest.raises(D2CityscapesError, match="number of workers is 0"):
        score_files(pngs(folder, "truth"), pngs(folder, "prediction"), workers=0)


def without(files: PanopticFiles, *names: str) -> PanopticFiles:
    kept = {name: id_map for name, id_map in files.maps.items() if name not in names}
    return PanopticFiles(files.path, kept)


def test_missing_predictions_are_an_error_that_lists_them(folder: Path) -> None:
    truth, prediction = pngs(folder, "truth"), without(pngs(folder, "prediction"), *NAMES[1:6])
    assert missing_predictions(truth, prediction) == NAMES[1:6]
    with pytest.raises(D2CityscapesError) as caught:
        score_files(truth, prediction)
    for part in ("5 of 12 images", f"{NAMES[1]}, {NAMES[2]}, {NAMES[3]}, ...", "--allow-missing"):
        assert part in str(caught.value)
    assert caught.value.details == tuple(NAMES[1:6])


def test_allowed_missing_predictions_miss_every_segment(
    folder: Path, maps: dict[str, list[np.ndarray]]
) -> None:
    expected = PanopticQuality()
    for i, (prediction, truth) in enumerate(zip(maps["prediction"], maps["truth"], strict=True)):
        expected.update(prediction if i != 4 else np.zeros_like(truth), truth)
    prediction = without(pngs(folder, "prediction"), NAMES[4])
    quality = score_files(pngs(folder, "truth"), prediction, allow_missing=True)
    np.testing.assert_array_equal(quality.state(), expected.state())


@pytest.mark.parametrize("allow_missing", [False, True])
def test_no_common_image_is_always_an_error(folder: Path, allow_missing: bool) -> None:
    truth, prediction = pngs(folder, "truth"), pngs(folder, "prediction")
    renamed = PanopticFiles(prediction.path, {f"x{k}": v for k, v in prediction.maps.items()})
    with pytest.raises(D2CityscapesError, match=f"12 of 12 images .*its images are x{NAMES[0]}"):
        score_files(truth, renamed, allow_missing=allow_missing)


def test_predictions_without_truth_are_ignored_aloud(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth, prediction = without(pngs(folder, "truth"), *NAMES[:2]), pngs(folder, "prediction")
    with caplog.at_level(logging.WARNING):
        quality = score_files(truth, prediction)
    assert len(caplog.records) == 1
    assert f"2 predictions of images without truth are ignored ({NAMES[0]}" in caplog.text
    np.testing.assert_array_equal(
        quality.state(), score_files(truth, without(prediction, *NAMES[:2])).state()
    )


# files that cannot be scored ----------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def bad(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[Callable]:
    """(ids) -> the error of scoring with these as the prediction of one image, and its file."""

    def score_with(ids: np.ndarray) -> tuple[str, Path]:
        prediction = pngs(folder, "prediction")
        path = tmp_path / f"{NAMES[3]}.png"
        Image.fromarray(ids).save(path)
        maps = {**prediction.maps, **find_panoptic_files(tmp_path, truth=False).maps}
        with pytest.raises(D2CityscapesError) as caught:
            score_files(pngs(folder, "truth"), PanopticFiles(tmp_path, maps), workers=request.param)
        assert "\n" not in str(caught.value)
        return str(caught.value), path

    yield score_with


def test_size_mismatch_names_both_files(bad: Callable, folder: Path) -> None:
    message, path = bad(np.zeros((24, 48), np.uint16))
    assert str(path) in message
    assert f"{NAMES[3]}_gtFine_instanceIds.png" in message
    assert "(24, 48) and (48, 96)" in message


def test_unknown_ids_name_the_file(bad: Callable) -> None:
    message, path = bad(np.full((48, 96), 34_000, np.uint16))
    assert str(path) in message
    assert "prediction: ids 34000 are unknown" in message


def test_unreadable_prediction_names_the_file(bad: Callable) -> None:
    message, path = bad(np.zeros((48, 96, 3), np.uint8))
    assert str(path) in message
    assert "RGB with 8 bits" in message
