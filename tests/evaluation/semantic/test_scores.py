"""IoU and iIoU: hand-worked pictures, the official tool's digits, and properties."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import referee
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import category2labels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError
from d2_cityscapes.evaluation.semantic.scores import BENCHMARKS, SemSegQuality
from d2_cityscapes.labels import CITYSCAPES, LabelTable

ROAD, CAR, TRUCK, PERSON, VOID = 0, 13, 14, 11, 255
CAR_SIZE = 12794.0202738185


def score(pred: list, true: list) -> dict:
    quality = SemSegQuality()
    quality.update(np.array(pred), np.array(true))
    return quality.compute()


def test_hand_worked() -> None:
    """Two cars, one of 4 pixels half found, one of 1 pixel found; a car on road; void; a group."""
    true = [
        [26001, 26001, 26002, 7],
        [26001, 26001, 7, 7],
        [26, 26, 0, 7],
    ]
    pred = [
        [CAR, CAR, CAR, CAR],
        [TRUCK, ROAD, ROAD, ROAD],
        [CAR, ROAD, CAR, VOID],
    ]
    scores = score(pred, true)
    # car: 4 hit (one in the group), 3 missed (one in the group), 1 false on road; void is ignored.
    assert scores["per_class"]["car"]["IoU"] == pytest.approx(100 * 4 / 8)
    # parts hit: 2 / 4 and 1 / 1; the group does not count; 1 false pixel.
    expected = 100 * CAR_SIZE * 1.5 / (CAR_SIZE * 2 + 1)
    assert scores["per_class"]["car"]["iIoU"] == pytest.approx(expected, abs=1e-9)
    # road: 2 hit, 2 missed (as car and as void), 2 false.
    assert scores["per_class"]["road"] == {"IoU": pytest.approx(100 * 2 / 6)}
    assert scores["per_class"]["truck"] == {"IoU": 0.0, "iIoU": 0.0}, "claimed, never there"
    assert scores["per_class"]["bus"] == {"IoU": None, "iIoU": None}
    # vehicle: the truck on the car is a hit.
    assert scores["per_category"]["vehicle"]["IoU"] == pytest.approx(100 * 5 / 8)
    expected = 100 * CAR_SIZE * 1.75 / (CAR_SIZE * 2 + 1)
    assert scores["per_category"]["vehicle"]["iIoU"] == pytest.approx(expected, abs=1e-9)
    assert scores["per_category"]["human"] == {"IoU": None, "iIoU": None}
    assert scores["mIoU"] == pytest.approx((50 + 100 / 3 + 0) / 3)
    assert scores["mIoU_category"] == pytest.approx((62.5 + 100 / 3) / 2)


def test_constants_are_those_of_the_official_tool() -> None:
    ours = BENCHMARKS["cityscapes"]
    for c in CITYSCAPES.things:
        assert ours.average_sizes[c.name] == official.args.avgClassSize[c.name]
    theirs = {
        name: tuple(label.name for label in labels if not label.ignoreInEval)
        for name, labels in category2labels.items()
    }
    assert dict(ours.categories) == {name: names for name, names in theirs.items() if names}


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_official_tool(
    seed: int,
    paint: Callable,
    disturb: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    referee.mend(monkeypatch)
    quality = SemSegQuality()
    files: tuple[list[str], list[str]] = ([], [])
    rng = np.random.default_rng(seed)
    for i in range(4):
        ids = paint(10 * seed + i, (64, 128), 25)
        train_ids = CITYSCAPES.train_id_of[disturb(ids, i)]
        noise = rng.random(ids.shape) < 0.1
        train_ids[noise] = rng.choice([*range(19), VOID], int(noise.sum()))
        quality.update(train_ids, ids)
        for kind, pixels in (
            ("pred", CITYSCAPES.label_id_of_train[train_ids].astype(np.uint8)),
            ("gtFine_labelIds", np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)),
            ("gtFine_instanceIds", ids.astype(np.uint16)),
        ):
            path = str(tmp_path / f"town_000000_{i:06d}_{kind}.png")
            Image.fromarray(pixels).save(path)
            if "instance" not in kind:
                files[kind != "pred"].append(path)
    args = copy.copy(official.args)
    args.JSONOutput, args.quiet = False, True
    expected = official.evaluateImgLists(*files, args)
    capsys.readouterr()

    def same(ours: float | None, theirs: float) -> None:
        value = np.nan if ours is None else ours
        assert value == pytest.approx(100 * theirs, abs=1e-9, rel=0, nan_ok=True)

    scores = quality.compute()
    same(scores["mIoU"], expected["averageScoreClasses"])
    same(scores["iIoU"], expected["averageScoreInstClasses"])
    same(scores["mIoU_category"], expected["averageScoreCategories"])
    same(scores["iIoU_category"], expected["averageScoreInstCategories"])
    for group, theirs in (("per_class", "class"), ("per_category", "category")):
        for name, own in scores[group].items():
            same(own["IoU"], expected[f"{theirs}Scores"][name])
            same(own.get("iIoU"), expected[f"{theirs}InstScores"][name])
    assert 5 < scores["iIoU"] < 95


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), noise=st.floats(0, 1))
def test_properties(paint: Callable, seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(2):
        ids = paint(seed + i, (24, 40), 8)
        train_ids = CITYSCAPES.train_id_of[ids]
        train_ids = np.where(rng.random(ids.shape) < noise, rng.integers(0, 19), train_ids)
        pairs.append((train_ids, ids))
    whole, parts, backwards = SemSegQuality(), SemSegQuality(), SemSegQuality()
    for pair in pairs:
        whole.update(*pair)
        part = SemSegQuality()
        part.update(*pair)
        parts.merge(part)
    for pair in reversed(pairs):
        backwards.update(*pair)
    together = SemSegQuality()
    together.update(*(np.concatenate(maps, axis=1) for maps in zip(*pairs, strict=True)))
    for other in (parts, backwards, together):
        # confusions are exact; the parts of instances add up in another order
        assert (other.state()[:, :20] == whole.state()[:, :20]).all()
        assert other.compute()["mIoU"] == whole.compute()["mIoU"]
    for other in (parts, backwards):
        assert np.allclose(other.state(), whole.state(), rtol=1e-12, atol=0)

    truth = SemSegQuality()
    for _, ids in pairs:
        truth.update(CITYSCAPES.train_id_of[ids], ids)
    for scores in truth.compute()["per_class"].values():
        assert scores["IoU"] in (None, 100) and scores.get("iIoU") in (None, 100)


def test_numbering_of_instances_does_not_matter(paint: Callable) -> None:
    ids = paint(3)
    other = np.where(ids >= 1000, ids // 1000 * 1000 + 998 - ids % 1000, ids)
    pred = CITYSCAPES.train_id_of[paint(4)]
    a, b = SemSegQuality(), SemSegQuality()
    a.update(pred, ids)
    b.update(torch.from_numpy(pred).long(), torch.from_numpy(other))
    assert a.compute()["iIoU"] == pytest.approx(b.compute()["iIoU"], abs=1e-9)
    assert a.compute()["mIoU"] == b.compute()["mIoU"]


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (2, 3)])
def test_nothing_but_void(shape: tuple[int, int]) -> None:
    quality = SemSegQuality()
    quality.update(np.zeros(shape, np.uint8), np.zeros(shape, np.int32))
    scores = quality.compute()
    assert scores["mIoU"] is scores["iIoU"] is scores["iIoU_category"] is None


def test_another_table_has_no_instance_sizes() -> None:
    table = LabelTable("other", CITYSCAPES.classes, CITYSCAPES.label_names)
    quality = SemSegQuality(table)
    quality.update(np.array([[CAR]]), np.array([[26001]]))
    scores = quality.compute()
    assert scores["mIoU"] == 100 and scores["iIoU"] is None and scores["per_category"] == {}
    with pytest.raises(InvalidMapError, match=r"shape|is \(19, 23\)"):
        quality.merge(np.zeros((2, 2)))


def test_merging_other_classes_is_refused() -> None:
    table = LabelTable("few", CITYSCAPES.classes[:3], CITYSCAPES.label_names)
    with pytest.raises(InvalidMapError, match="'few'"):
        SemSegQuality().merge(SemSegQuality(table))


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        ([[0, 19, 254]], [[7, 7, 7]], "prediction: 19, 254 are no train ids"),
        ([[-1]], [[7]], "prediction: -1 are no train ids"),
        ([[300]], [[7]], "prediction: 300 are no train ids"),
        ([[0]], [[99]], "truth: ids 99 are unknown"),
        ([[0]], [[40000]], "truth: ids 40000 are unknown"),
        ([[0]], [[-5]], "truth: ids -5 are unknown"),
        ([[0, 0]], [[7]], r"\(1, 2\) and \(1, 1\)"),
        ([[0.5]], [[7]], "prediction: expected an .H, W. map of integers, found float64"),
        ([0], [[7]], r"prediction: .* found int64 of \(1,\)"),
    ],
)
def test_wrong_maps_are_refused(pred: list, true: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(pred, true)
