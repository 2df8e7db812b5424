"""The benchmark's AP in memory against cityscapesscripts' own program on files."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import referee
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official_tool
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.evaluation.instances.cityscapes import cityscapes_scores, match_masks
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances

SIZE = (64, 128)
PERSON, RIDER, CAR = 0, 1, 2  # thing ids

Scores = dict[str, tuple[float | None, int]]


@dataclass(frozen=True)
class Scene:
    """The truth of an image and its predictions."""

    ids: np.ndarray  # (H, W)
    masks: np.ndarray  # (N, H, W) bool
    thing_ids: np.ndarray
    scores: np.ndarray


def score(scenes: Sequence[Scene]) -> Scores:
    images = {}
    for number, s in enumerate(scenes):
        found = find_instances(s.ids, CITYSCAPES)
        images[f"image{number}"] = match_masks(
            s.masks, s.thing_ids, s.scores, s.ids, found, CITYSCAPES
        )
    return cityscapes_scores(images, CITYSCAPES)


def official(
    scenes: Sequence[Scene], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, float | None]:
    """What the program gives on files in a folder that is empty or holds those of an earlier call.

    Raises:
        IndexError: its issue 89.
    """
    referee.mend(monkeypatch)
    monkeypatch.chdir(folder)  # it writes matches.json where it is
    truths, texts = [], []
    for number, scene in enumerate(scenes):
        stem = f"town_000000_{number:06d}"
        truths.append(str(folder / f"{stem}_gtFine_instanceIds.png"))
        Image.fromarray(scene.ids.astype(np.uint16)).save(truths[-1])
        lines = []
        for row, mask in enumerate(scene.masks):
            name = f"{stem}_{row}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)
            label_id = CITYSCAPES.label_id_of_thing[scene.thing_ids[row]]
            lines.append(f"{name} {label_id} {float(scene.scores[row])!r}\n")
        texts.append(str(folder / f"{stem}_pred.txt"))
        Path(texts[-1]).write_text("".join(lines))
    args = copy.copy(official_tool.args)
    args.predictionPath, args.gtInstancesFile = str(folder), str(folder / "gtInstances.json")
    args.JSONOutput, args.quiet = False, True
    Path(args.gtInstancesFile).unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means of nothing
        warnings.simplefilter("ignore", DeprecationWarning)
        found = official_tool.evaluateImgLists(texts, truths, args)["averages"]
    expected = {"AP": found["allAp"], "AP50": found["allAp50%"]}
    for name, values in found["classes"].items():
        expected |= {f"AP-{name}": values["ap"], f"AP50-{name}": values["ap50%"]}
    return {m: None if math.isnan(v) else 100 * float(v) for m, v in expected.items()}


def check(scenes: Sequence[Scene], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scores:
    scores = score(scenes)
    expected = official(scenes, folder, monkeypatch)
    assert scores.keys() == expected.keys()
    for metric, (value, _) in scores.items():
        assert value == (expected[metric] and pytest.approx(expected[metric], abs=1e-9)), metric
    return scores


def noisy(ids: np.ndarray, seed: int) -> Scene:
    """Copies of the instances and groups of a map, moved or cut, some of another class."""
    rng = np.random.default_rng(seed)
    found = find_instances(ids, CITYSCAPES)
    masks, things = [np.zeros(ids.shape, dtype=bool), ids < 7], [CAR, PERSON]
    for row in rng.integers(0, len(found), 3 * len(found)) if len(found) else ():
        mask = np.roll(ids == found.ids[row], rng.integers(-3, 4, 2), (0, 1))
        if rng.random() < 0.2:
            mask[rng.integers(0, ids.shape[0]) :] = False
        masks.append(mask)
        things.append(CITYSCAPES.thing_id_of_train[found.classes[row]])
        if rng.random() < 0.2:
            things[-1] = rng.integers(0, 8)
    scores = rng.integers(1, 12, len(masks)) / 12  # some of them equal
    return Scene(ids, np.array(masks), np.array(things), scores.astype(np.float32))


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    seed=st.integers(0, 2**32 - 3),
    size=st.sampled_from([(24, 36), SIZE]),
    shapes=st.integers(0, 30),
)
def test_cityscapesscripts_agrees(
    paint: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    size: tuple[int, int],
    shapes: int,
) -> None:
    scenes = [noisy(paint(seed + i, size, shapes), seed + i) for i in range(3)]
    try:
        check(scenes, tmp_path, monkeypatch)
    except IndexError:
        assume(False)


def test_the_pictures_are_neither_trivial_nor_hopeless(
    paint: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes = [noisy(paint(seed, SIZE, 30), seed) for seed in range(8)]
    scores = check(scenes, tmp_path, monkeypatch)
    assert 10 < scores["AP"][0] < scores["AP50"][0] < 90
    assert scores["AP"][1] == scores["AP50"][1] == 6
    assert scores["AP-car"][1] == 1
    assert scores["AP-truck"] == (None, 0)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def scene(
    truth: Sequence[tuple[int, np.ndarray]], predictions: Sequence[tuple[int, float, np.ndarray]]
) -> Scene:
    ids = np.full(SIZE, 7)
    for instance_id, mask in truth:
        ids[mask] = instance_id
    things, scores, masks = zip(*predictions, strict=True) if predictions else ((), (), ())
    return Scene(
        ids,
        np.array(masks, dtype=bool).reshape(-1, *SIZE),
        np.array(things, dtype=np.int64),
        np.array(scores, dtype=np.float64),
    )


A, B = rectangle(10, 10, 30, 30), rectangle(40, 60, 60, 80)
FAR = rectangle(0, 100, 20, 120)
SMALL = rectangle(50, 10, 59, 20)  # 90 pixels


@pytest.mark.parametrize(
    ("truth", "predictions", "ap"),
    [
        pytest.param([(26000, A)], [(CAR, 0.5, A)], 100, id="found"),
        pytest.param([(26000, A), (26001, B)], [(CAR, 0.5, A)], 50, id="one of two"),
        pytest.param([(26000, A)], [(CAR, 0.5, A), (CAR, 0.4, FAR)], 100, id="wrong below"),
        # the curve: recall 0 has precision 1 and then 0, recall 1 has precision 1/2
        pytest.param([(26000, A)], [(CAR, 0.5, A), (CAR, 0.6, FAR)], 25, id="wrong above"),
        pytest.param([(26000, A)], [(CAR, 0.5, A), (CAR, 0.5, FAR)], 75, id="equal scores"),
        pytest.param([(26000, A)], [(CAR, 0.6, A), (CAR, 0.5, A)], 100, id="twice"),
        pytest.param([(26000, A)], [(PERSON, 0.5, A)], 0, id="another class"),
        pytest.param([(26000, A)], [], 0, id="nothing"),
        pytest.param([(26000, A)], [(CAR, 0.5, A & ~A)], 0, id="an empty mask"),
        pytest.param([(26000, A), (26, B)], [(CAR, 0.5, A), (CAR, 0.9, B)], 100, id="group"),
        pytest.param([(26000, A), (25, B)], [(CAR, 0.5, A), (CAR, 0.9, B)], 25, id="other group"),
        pytest.param([(26000, A), (0, B)], [(CAR, 0.5, A), (CAR, 0.9, B)], 100, id="void"),
        pytest.param([(26000, A), (29, B)], [(CAR, 0.5, A), (CAR, 0.9, B)], 100, id="caravans"),
        pytest.param([(26000, A), (29000, B)], [(CAR, 0.5, A), (CAR, 0.9, B)], 25, id="a caravan"),
        pytest.param(
            [(26000, A), (26001, SMALL)], [(CAR, 0.5, A), (CAR, 0.9, SMALL)], 100, id="small"
        ),
        pytest.param([(26000, A), (26001, SMALL)], [(CAR, 0.5, A)], 100, id="small one missed"),
    ],
)
def test_by_hand(
    truth: Sequence, predictions: Sequence, ap: float, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    scores = check([scene(truth, predictions)], tmp_path, monkeypatch)
    assert scores["AP"] == scores["AP50"] == scores["AP-car"] == (pytest.approx(ap), 1)
    assert scores["AP-person"] == (None, 0)


def test_a_match_lies_strictly_above_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # thresholds 0.5, 0.55 ... 0.95 below IoUs of 200/400 and 260/400
    for rows, ap in ((10, 0), (13, 30)):
        half = rectangle(10, 10, 10 + rows, 30)
        scores = check([scene([(26000, A)], [(CAR, 0.5, half)])], tmp_path, monkeypatch)
        assert scores["AP"][0] == pytest.approx(ap)
        assert scores["AP50"][0] == (100 if ap else 0)


def test_pixels_of_a_small_group_count_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 90 of 300 pixels on a group: 30 %, or 60 % where it is small
    wide = rectangle(50, 10, 60, 40)
    truth = [(26000, A), (26, SMALL)]
    scores = check([scene(truth, [(CAR, 0.5, A), (CAR, 0.9, wide)])], tmp_path, monkeypatch)
    assert scores["AP50"][0] == 100
    assert 25 < scores["AP"][0] < 100


def test_where_the_official_program_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class with an instance, whose only prediction is ignored: nothing was found of it."""
    scenes = [scene([(26000, A), (0, B), (24000, FAR)], [(CAR, 0.5, B), (PERSON, 0.5, FAR)])]
    with pytest.raises(IndexError):
        official(scenes, tmp_path, monkeypatch)
    scores = score(scenes)
    assert scores["AP-car"] == scores["AP50-car"] == (0, 1)
    assert scores["AP-person"] == (pytest.approx(100), 1)
    assert scores["AP"] == (pytest.approx(50), 2)


@pytest.mark.parametrize("ids", [7, 0, 26, 29001], ids=["stuff", "void", "groups", "caravan"])
def test_nothing_to_find(ids: int) -> None:
    empty = scene([(ids, rectangle(0, 0, *SIZE))], [(CAR, 0.5, A)])
    assert set(score([empty]).values()) == {(None, 0)}
    assert set(score([]).values()) == {(None, 0)}


def test_order_of_images_and_predictions_does_not_matter(paint: Callable) -> None:
    scenes = [noisy(paint(seed, SIZE, 30), seed) for seed in range(4)]
    turned = [
        Scene(s.ids, s.masks[::-1], s.thing_ids[::-1], s.scores[::-1]) for s in reversed(scenes)
    ]
    expected = score(scenes)
    for metric, (value, classes) in score(turned).items():
        assert expected[metric] == (value and pytest.approx(value, abs=1e-9), classes)


def test_matches_are_small_and_travel(paint: Callable) -> None:
    s = noisy(paint(3, SIZE, 30), 3)
    found = find_instances(s.ids, CITYSCAPES)
    matches = match_masks(s.masks, s.thing_ids, s.scores, s.ids, found, CITYSCAPES)
    sent = pickle.dumps(matches)
    assert len(sent) < 1500 + 50 * len(s.scores)
    again = cityscapes_scores({"a": pickle.loads(sent)}, CITYSCAPES)
    assert again == cityscapes_scores({"a": matches}, CITYSCAPES)


def test_masks_of_another_size_are_refused() -> None:
    s = scene([(26000, A)], [(CAR, 0.5, A)])
    found = find_instances(s.ids, CITYSCAPES)
    with pytest.raises(InvalidMapError, match=r"\(32, 128\) for an image of \(64, 128\): resize"):
        match_masks(s.masks[:, :32], s.thing_ids, s.scores, s.ids, found, CITYSCAPES)
