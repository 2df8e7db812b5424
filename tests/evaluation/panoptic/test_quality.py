"""Panoptic quality: golden numbers, pictures worked by hand, properties, and two referees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation.evalPanopticSemanticLabeling import pq_compute_single_core
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.quality import STATE_ROWS, PanopticQuality
from d2_cityscapes.labels import CITYSCAPES, LabelTable

GOLDEN = Path(__file__).parents[2] / "golden" / "panoptic_quality.npz"
ROAD, SKY, PERSON, CAR = 0, 10, 11, 13  # train ids
seeds = st.integers(0, 10_000)


def score(pred: np.ndarray, true: np.ndarray) -> PanopticQuality:
    quality = PanopticQuality()
    quality.update(pred, true)
    return quality


def sums(quality: PanopticQuality, train_id: int) -> dict[str, float]:
    return dict(zip(STATE_ROWS, quality.state()[:, train_id].tolist(), strict=True))


def close(a: dict, b: dict) -> None:
    """Compare two results of compute() to 1e-9, None included."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            close(value, b[key])
        elif value is None:
            assert b[key] is None, key
        else:
            assert value == pytest.approx(b[key], abs=1e-9, rel=0), key


# golden numbers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def golden_ids(golden: dict[str, np.ndarray], pair: int, role: str) -> np.ndarray:
    """Instance ids of a golden segment map; crowd of either role is the plain label id."""
    segments, classes, crowd = (
        golden[f"pair{pair:02d}/{role}_{name}"] for name in ("map", "class", "iscrowd")
    )
    lookup = np.zeros(len(classes), dtype=np.int32)
    for segment in range(1, len(classes)):
        c = CITYSCAPES.classes[classes[segment]]
        instance = c.is_thing and not crowd[segment]
        lookup[segment] = c.label_id * 1000 + segment if instance else c.label_id
    return lookup[segments]


def test_golden_pairs(golden: dict[str, np.ndarray]) -> None:
    total = PanopticQuality()
    num_stuff = int(golden["num_stuff"])
    for pair in range(int(golden["num_pairs"])):
        pred, true = (golden_ids(golden, pair, role) for role in ("pred", "gt"))
        state = score(pred, true).state()
        iou_tp_fp_fn = golden["panopticapi/iou_tp_fp_fn"][pair]
        np.testing.assert_allclose(state[0], iou_tp_fp_fn[0], atol=1e-9, rtol=0)
        np.testing.assert_array_equal(state[1:4], iou_tp_fp_fn[1:])
        dagger = golden["dagger/stuff_iou_sum_crowd_kept"][pair, :num_stuff]
        np.testing.assert_allclose(state[4, :num_stuff], dagger, atol=1e-9, rtol=0)
        images = golden["dagger/stuff_gt_count"][pair, :num_stuff]
        np.testing.assert_array_equal(state[5, :num_stuff], images)
        total.update(pred, true)
    result = total.compute()
    for metric, expected in (
        ("PQ", 65.1659),
        ("PQ_th", 60.6906),
        ("PQ_st", 68.2986),
        ("PQ_dagger", 67.3887),
    ):
        assert result[metric] == pytest.approx(expected, abs=1e-4)
    never_seen = [name for name, q in result["per_class"].items() if q["PQ"] is None]
    assert never_seen == ["terrain", "train"]


# pictures worked on paper -------------------------------------------------------------------------


def test_iou_of_exactly_one_half_is_no_match() -> None:
    true = np.array([[26000, 26000, 26000, 11]])
    pred = np.array([[11, 26000, 26000, 26000]])
    car = sums(score(pred, true), CAR)
    assert (car["iou"], car["tp"], car["fp"], car["fn"]) == (0, 0, 1, 1)
    true = np.array([[26000, 26000, 26000, 26000, 11]])
    pred = np.array([[11, 26000, 26000, 26000, 26000]])
    assert sums(score(pred, true), CAR)["iou"] == 3 / 5


def test_void_truth_leaves_the_union_and_void_prediction_does_not() -> None:
    true = np.array([[0, 0, 0, 7, 7, 7, 7, 7, 7]])
    pred = np.array([[7, 7, 7, 7, 7, 7, 7, 0, 0]])
    road = sums(score(pred, true), ROAD)
    assert road["iou"] == road["dagger_iou"] == 4 / 6


def test_prediction_on_void_is_forgiven_above_one_half() -> None:
    true = np.array([[0, 0, 11, 11]])
    assert sums(score(np.array([[26000, 26000, 26000, 26000]]), true), CAR)["fp"] == 1
    assert sums(score(np.array([[26000, 26000, 26000, 11]]), true), CAR)["fp"] == 0


def test_crowd_forgives_its_own_class_only_and_is_never_missed() -> None:
    true = np.full((2, 4), 26)
    on_crowd = score(np.full((2, 4), 26007), true)
    assert not on_crowd.state().any()
    other = sums(score(np.full((2, 4), 24000), true), PERSON)
    assert other["fp"] == 1


def test_crowd_stays_in_the_union() -> None:
    true = np.array([[26000, 26000, 26000, 26, 26]])
    pred = np.full((1, 5), 26003)
    assert sums(score(pred, true), CAR)["iou"] == 3 / 5


def test_predicted_group_is_void() -> None:
    true = np.array([[26000, 26000, 7, 7]])
    car = sums(score(np.array([[26, 26, 7, 7]]), true), CAR)
    assert (car["tp"], car["fp"], car["fn"]) == (0, 0, 1)


def test_dagger_of_stuff_by_the_formula() -> None:
    quality = PanopticQuality()
    quality.update(np.array([[7, 23, 23, 23]]), np.array([[7, 7, 7, 7]]))  # IoU 1/4
    quality.update(np.array([[23, 23]]), np.array([[7, 7]]))  # in the truth alone: 0
    quality.update(np.array([[7, 7]]), np.array([[11, 11]]))  # in the prediction alone: free
    assert quality.compute()["per_class"]["road"] == {
        "PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "PQ_dagger": 12.5, "iou": 0.0, "tp": 0, "fp": 2, "fn": 2,
    }  # fmt: skip
    assert quality.compute()["per_class"]["sky"]["PQ_dagger"] is None


def test_stuff_is_one_segment_whatever_its_instance_number() -> None:
    true = np.array([[7001, 7002, 7002]])
    assert score(np.array([[7, 7, 7]]), true).compute()["PQ"] == 100


def test_class_never_seen_is_none_and_left_out_of_the_means() -> None:
    result = score(np.array([[7, 26000]]), np.array([[7, 26000]])).compute()
    assert result["PQ"] == result["PQ_dagger"] == result["SQ_th"] == 100
    assert result["per_class"]["sky"]["PQ"] is None
    assert list(result["per_class"]) == [c.name for c in CITYSCAPES.classes]
    empty = PanopticQuality().compute()
    assert [empty[m] for m in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st", "PQ_dagger")] == [None] * 6


@pytest.mark.parametrize("true", [np.zeros((0, 0), int), np.zeros((4, 4), int), np.full((4, 4), 3)])
def test_nothing_to_score_adds_nothing(true: np.ndarray) -> None:
    assert not score(np.full(true.shape, 26001), true).state().any()


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0)])
def test_image_without_pixels(shape: tuple[int, int]) -> None:
    assert not score(np.zeros(shape, np.uint16), np.zeros(shape, np.int64)).state().any()


def test_no_prediction_misses_every_segment() -> None:
    true = np.array([[26000, 26001, 26, 7, 7, 0]])
    quality = score(np.zeros_like(true), true)
    assert sums(quality, CAR)["fn"] == 2, "the group is never missed"
    assert sums(quality, ROAD)["fn"] == 1
    assert quality.state()[:3].sum() == quality.state()[4].sum() == 0
    assert quality.compute()["PQ"] == quality.compute()["PQ_dagger"] == 0


def test_thousands_of_segments_moved_by_a_column() -> None:
    """6000 tiles of 2 x 8 pixels, all against all too many for a table of pairs."""
    grid = np.arange(6000).reshape(60, 100).repeat(2, axis=0).repeat(8, axis=1)
    true = 24000 + grid // 1000 * 1000 + grid % 1000
    true[true >= 29000] = 31000 + true[true >= 29000] % 1000  # not the caravans
    quality = score(np.roll(true, 1, axis=1), true)
    assert quality.state()[1].sum() == 6000
    assert quality.state()[2:4].sum() == 0
    assert quality.state()[0].sum() == pytest.approx(6000 * 7 / 9)


def test_thousands_of_segments() -> None:
    grid = np.arange(6000).reshape(60, 100)
    true = 24000 + grid // 1000 * 1000 + grid % 1000
    true[true >= 29000] = 7
    quality = score(true, true)
    assert quality.state()[1].sum() == 5001
    assert quality.compute()["PQ"] == 100


# inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64", "uint64"])
def test_integer_types_numpy_and_torch(dtype: str, paint: Callable, disturb: Callable) -> None:
    true = paint(1)
    pred = disturb(true, 2)
    expected = score(pred, true).state()
    np.testing.assert_array_equal(score(pred.astype(dtype), true.astype(dtype)).state(), expected)
    as_tensors = (torch.from_numpy(a.astype(dtype)) for a in (pred, true))
    np.testing.assert_array_equal(score(*as_tensors).state(), expected)


def test_eight_bits_hold_plain_label_ids() -> None:
    """Where all thing pixels are groups."""
    ids = np.array([[7, 7, 26, 23], [8, 7, 24, 0]], dtype=np.uint8)
    assert score(ids, ids).state()[1].sum() == 3
    np.testing.assert_array_equal(
        score(torch.from_numpy(ids), ids).state(), score(ids.astype(int), ids.astype(int)).state()
    )


def test_sixteen_signed_bits_overflow_to_a_clear_error() -> None:
    with pytest.raises(ValueError, match="ids -32536 are unknown"):
        score(np.array([[33000]]).astype(np.int16), np.array([[33000]]))


def test_views_that_are_not_contiguous() -> None:
    true = np.full((6, 8), 7)
    true[1:4, 2:5] = 26000
    assert score(true[::2, ::-1].T, true.T[::-1, ::2].copy()).compute()["PQ"] == 100


@pytest.mark.parametrize(
    ("pred", "true", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), r"\(2, 3\) and \(3, 2\)"),
        (
            np.zeros((2, 3), int),
            np.zeros((2, 3)),
            "truth: expected an .H, W. map of integers, found float64",
        ),
        (torch.zeros(2, 3), np.zeros((2, 3), int), "prediction: .*float32"),
        (np.zeros((2, 3), bool), np.zeros((2, 3), int), "prediction: .*bool"),
        (np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int), r"\(1, 2, 3\)"),
        (np.full((2, 3), 255), np.zeros((2, 3), int), "prediction: ids 255 are unknown"),
        (np.zeros((2, 3), int), np.full((2, 3), -1), "truth: ids -1 are unknown"),
        (np.full((2, 3), 34_000), np.zeros((2, 3), int), "prediction: ids 34000 are unknown"),
    ],
)
def test_refused_input_is_one_clear_value_error(pred, true, message: str) -> None:
    quality = PanopticQuality()
    with pytest.raises(ValueError, match=message) as caught:
        quality.update(pred, true)
    assert isinstance(caught.value, D2CityscapesError)
    assert "\n" not in str(caught.value)
    assert not quality.state().any()


def test_another_label_table() -> None:
    classes = tuple(replace(c, train_id=i) for i, c in enumerate(CITYSCAPES.classes[10:13]))
    classes = (classes[0], replace(classes[1], thing_id=0), replace(classes[2], thing_id=1))
    table = LabelTable("small", classes, CITYSCAPES.label_names)
    quality = PanopticQuality(table)
    ids = np.array([[23, 24000, 25000, 7]])
    quality.update(ids, ids)
    result = quality.compute()
    assert list(result["per_class"]) == ["sky", "person", "rider"]
    assert result["PQ"] == 100
    with pytest.raises(D2CityscapesError, match="one label table"):
        quality.merge(PanopticQuality())
    with pytest.raises(D2CityscapesError, match=r"\(6, 19\)"):
        quality.merge(PanopticQuality().state())


# properties ---------------------------------------------------------------------------------------


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_truth_against_itself_is_100(seed: int, paint: Callable) -> None:
    ids = paint(seed)
    # a predicted group is void, so each must be an instance to be found again
    ids = np.where(np.isin(ids, [24, 26]), 0, ids)
    quality = score(ids, ids)
    result = quality.compute()
    seen = [q for q in result["per_class"].values() if q["PQ"] is not None]
    assert all(q["PQ"] == q["SQ"] == q["RQ"] == 100 == q["PQ_dagger"] for q in seen)
    assert quality.state()[2:4].sum() == 0


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_instance_numbers_do_not_matter(seed: int, paint: Callable, disturb: Callable) -> None:
    true = paint(seed)
    pred = disturb(true, seed)

    def relabel(ids: np.ndarray) -> np.ndarray:
        number = np.random.default_rng(seed).permutation(1000)
        return np.where(ids >= 1000, ids // 1000 * 1000 + number[ids % 1000], ids)

    close(score(relabel(pred), relabel(true)).compute(), score(pred, true).compute())


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_merge_is_concatenation_in_any_order(seed: int, paint: Callable, disturb: Callable) -> None:
    truths = [paint(seed + i) for i in range(4)]
    pairs = [(disturb(true, seed + i), true) for i, true in enumerate(truths)]
    whole, first, second, states = (PanopticQuality() for _ in range(4))
    for pair in pairs:
        whole.update(*pair)
    for pair in pairs[2:]:
        first.update(*pair)
    for pair in reversed(pairs[:2]):
        second.update(*pair)
    states.merge(first.state() + second.state())
    first.merge(second)
    np.testing.assert_array_equal(first.state()[1:4], whole.state()[1:4])
    close(first.compute(), whole.compute())
    close(states.compute(), whole.compute())


@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_dagger_of_things_is_pq(seed: int, paint: Callable, disturb: Callable) -> None:
    true = paint(seed)
    per_class = score(disturb(true, seed), true).compute()["per_class"]
    assert all(per_class[c.name]["PQ_dagger"] == per_class[c.name]["PQ"] for c in CITYSCAPES.things)


# referees -----------------------------------------------------------------------------------------


def slow_state(pred: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The rules once more, segment by segment, with sets of pixels."""

    def segments(ids: np.ndarray) -> dict[tuple[int, int, bool], set[int]]:
        found: dict[tuple[int, int, bool], set[int]] = {}
        for position, value in enumerate(ids.ravel().tolist()):
            train_id = int(CITYSCAPES.train_id_of[value])
            if train_id != 255:
                thing = CITYSCAPES.classes[train_id].is_thing
                key = (train_id, value if thing else 0, thing and value < 1000)
                found.setdefault(key, set()).add(position)
        return found

    state = np.zeros((6, len(CITYSCAPES.classes)))
    predicted = {k: v for k, v in segments(pred).items() if not k[2]}
    annotated = segments(true)
    void = set(range(true.size)).difference(*annotated.values())
    for key, pixels in annotated.items():
        if key[2]:
            continue
        stuff = not CITYSCAPES.classes[key[0]].is_thing
        state[5, key[0]] += stuff
        matched = False
        for other, candidate in predicted.items():
            if other[0] != key[0]:
                continue
            iou = len(pixels & candidate) / len((pixels | candidate) - (candidate & void))
            state[4, key[0]] += iou if stuff else 0
            if iou > 0.5:
                matched = True
                predicted[other] = candidate | {-1}  # marks it as used
                state[:2, key[0]] += iou, 1
        state[3, key[0]] += not matched
    for key, pixels in predicted.items():
        crowd = next((v for k, v in annotated.items() if k[0] == key[0] and k[2]), set())
        if -1 not in pixels and len(pixels & (void | crowd)) / len(pixels) <= 0.5:
            state[2, key[0]] += 1
    return state


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_slow_version_agrees(seed: int, paint: Callable, disturb: Callable) -> None:
    true = paint(seed, (24, 40))
    pred = disturb(true, seed)
    np.testing.assert_allclose(score(pred, true).state(), slow_state(pred, true), atol=1e-9, rtol=0)


def write_coco_panoptic(ids: np.ndarray, path: Path, *, truth: bool) -> dict:
    """What createPanopticImgs makes of an instance-id map; a predicted group is left void."""
    segments, info = np.zeros(ids.shape, dtype=np.int64), []
    for value in np.unique(ids).tolist():
        train_id = int(CITYSCAPES.train_id_of[value])
        if train_id == 255:
            continue
        c = CITYSCAPES.classes[train_id]
        crowd = c.is_thing and value < 1000
        if crowd and not truth:
            continue
        mask = ids == value
        segments[mask] = value
        info.append(
            {
                "id": value,
                "category_id": c.label_id,
                "iscrowd": int(crowd),
                "area": int(mask.sum()),
            }
        )
    rgb = np.stack([segments % 256, segments // 256, segments // 65536], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    return {"image_id": path.stem, "file_name": path.name, "segments_info": info}


def test_cityscapesscripts_agrees(
    tmp_path: Path, paint: Callable, disturb: Callable, capsys: pytest.CaptureFixture
) -> None:
    folders = {role: tmp_path / role for role in ("true", "pred")}
    for folder in folders.values():
        folder.mkdir()
    quality, annotations = PanopticQuality(), []
    for seed in range(24):
        true = paint(seed)
        pred = disturb(true, seed)
        quality.update(pred, true)
        annotations.append(
            (
                write_coco_panoptic(true, folders["true"] / f"{seed}.png", truth=True),
                write_coco_panoptic(pred, folders["pred"] / f"{seed}.png", truth=False),
            )
        )
    categories = {c.label_id: {"isthing": int(c.is_thing)} for c in CITYSCAPES.classes}
    official = pq_compute_single_core(
        0, annotations, str(folders["true"]), str(folders["pred"]), categories
    )
    capsys.readouterr()
    result = quality.compute()
    for c in CITYSCAPES.classes:
        ours, theirs = result["per_class"][c.name], official[c.label_id]
        assert (ours["tp"], ours["fp"], ours["fn"]) == (theirs.tp, theirs.fp, theirs.fn)
        assert ours["iou"] == pytest.approx(theirs.iou, abs=1e-9)
    for suffix, things in (("", None), ("_th", True), ("_st", False)):
        mean, _ = official.pq_average(categories, things)
        for metric in ("PQ", "SQ", "RQ"):
            assert result[metric + suffix] == pytest.approx(100 * mean[metric.lower()], abs=1e-9)
    assert quality.state()[1].sum() > 20, "the pictures should hold matches"
    assert quality.state()[2].sum() > 20, "and false positives"
