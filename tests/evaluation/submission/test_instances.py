"""Instance submissions: what is written, and that cityscapesscripts scores it as we do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import referee
import torch
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official_tool
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.instances.cityscapes import cityscapes_scores, match_masks
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError
from d2_cityscapes.evaluation.submission.instances import (
    InstanceSubmissionWriter,
    write_instance_submission,
)
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances

SIZE = (48, 96)
NAME = "town_000000_000019_leftImg8bit.png"
STEM = "town_000000_000019_leftImg8bit"


def make_masks(number: int) -> np.ndarray:
    masks = np.zeros((number, *SIZE), dtype=bool)
    for i, mask in enumerate(masks):
        mask[i : i + 20, 5 * i : 5 * i + 11] = True
    return masks


def read(folder: Path) -> list[tuple[np.ndarray, int, float]]:
    """The detections of the only text file of a folder, read by the rules of the format."""
    (text,) = folder.rglob("*.txt")
    found = []
    for line in text.read_text().splitlines():
        path, label_id, score = line.split(" ")
        assert not Path(path).is_absolute()
        with Image.open(text.parent / path) as picture:
            mask = np.asarray(picture.convert("L")) != 0
        found.append((mask, int(label_id), float(score)))
    return found


def test_detections_come_back(tmp_path: Path) -> None:
    masks, scores = make_masks(3), np.array([0.1, 1 / 3, 1e-7], dtype=np.float32)
    text = write_instance_submission(
        tmp_path, Path("a") / NAME, masks, np.array([26, 24, 33]), scores
    )
    assert text == tmp_path / f"{STEM}.txt"
    found = read(tmp_path)
    assert [label_id for _, label_id, _ in found] == [26, 24, 33]
    assert [score for _, _, score in found] == scores.astype(np.float64).tolist()
    assert all(
        (mask == expected).all() for (mask, _, _), expected in zip(found, masks, strict=True)
    )


def test_an_image_without_detections_has_its_file(tmp_path: Path) -> None:
    nothing = np.zeros(0)
    text = write_instance_submission(tmp_path, NAME, make_masks(0), nothing, nothing)
    assert text.read_text() == ""


def test_empty_masks_are_left_out(tmp_path: Path) -> None:
    masks = make_masks(3)
    masks[1] = False
    write_instance_submission(tmp_path, NAME, masks, np.array([26, 26, 24]), np.ones(3))
    assert [label_id for _, label_id, _ in read(tmp_path)] == [26, 24]


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    for number in (4, 2):
        write_instance_submission(
            tmp_path, NAME, make_masks(number), np.full(number, 26), np.ones(number)
        )
        assert len(read(tmp_path)) == len(list(tmp_path.rglob("*.png"))) == number


def test_a_crash_leaves_no_text_file(tmp_path: Path) -> None:
    write_instance_submission(tmp_path, NAME, make_masks(2), np.full(2, 26), np.ones(2))

    def interrupted():
        yield make_masks(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_instance_submission(tmp_path, NAME, interrupted(), np.full(2, 26), np.ones(2))
    assert not list(tmp_path.rglob("*.txt"))


def test_names_with_a_space_are_refused(tmp_path: Path) -> None:
    with pytest.raises(D2CityscapesError, match=r"my town\.png: .* space; rename the image"):
        write_instance_submission(tmp_path, "my town.png", [], np.zeros(0), np.zeros(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a/..", "a\\..\\b.png"])
def test_no_name_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(D2CityscapesError, match="not the name of a file in this folder"):
        write_instance_submission(tmp_path / "out", name, make_masks(1), np.full(1, 26), np.ones(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("classes", "score"), [(50, 0.9), (-1, 0.9), (2, np.nan)])
def test_detections_that_the_data_cannot_have(classes: int, score: float, tmp_path: Path) -> None:
    MetadataCatalog.get("refused_scenes").set(label_table=CITYSCAPES)
    found = Instances(SIZE)
    found.pred_boxes, found.pred_masks = Boxes(torch.zeros(1, 4)), torch.ones(1, *SIZE)
    found.pred_classes, found.scores = torch.tensor([classes]), torch.tensor([score])
    writer = InstanceSubmissionWriter("refused_scenes", tmp_path)
    with pytest.raises(InvalidMapError, match="town: instances: detections"):
        writer.process([{"image_id": "town", "file_name": NAME}], [{"instances": found}])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(D2CityscapesError, match="cannot be"):
        write_instance_submission(
            tmp_path / "file", NAME, make_masks(1), np.full(1, 26), np.ones(1)
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_cityscapesscripts_scores_it_as_we_do(
    paint: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MetadataCatalog.get("submitted_scenes").set(label_table=CITYSCAPES)
    writer = InstanceSubmissionWriter("submitted_scenes", tmp_path / "submission")
    writer.reset()
    matches, truths = {}, []
    for seed in range(4):
        ids = paint(seed, SIZE, 20)
        found = find_instances(ids, CITYSCAPES)
        rng = np.random.default_rng(seed)
        masks = np.array([np.roll(ids == i, rng.integers(-2, 3), 1) for i in found.ids])
        instances = Instances(SIZE)
        instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
        instances.pred_masks = torch.from_numpy(masks)
        instances.pred_classes = torch.from_numpy(CITYSCAPES.thing_id_of_train[found.classes])
        instances.scores = torch.from_numpy(rng.random(len(found), dtype=np.float32))
        stem = f"town_000000_{seed:06d}"
        writer.process([{"file_name": f"{stem}_leftImg8bit.png"}], [{"instances": instances}])
        matches[stem] = match_masks(
            masks,
            instances.pred_classes.numpy(),
            instances.scores.numpy(),
            ids,
            found,
            CITYSCAPES,
        )
        truths.append(str(tmp_path / f"{stem}_gtFine_instanceIds.png"))
        Image.fromarray(ids.astype(np.uint16)).save(truths[-1])
    assert writer.evaluate() == {}

    monkeypatch.chdir(tmp_path)  # the program writes matches.json where it is
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(tmp_path / "submission"))
    referee.mend(monkeypatch)
    args = copy.copy(official_tool.args)
    args.predictionPath = args.predictionWalk = None
    args.gtInstancesFile = str(tmp_path / "gtInstances.json")
    args.JSONOutput, args.quiet = False, True
    texts = [official_tool.getPrediction(truth, args) for truth in truths]
    expected = official_tool.evaluateImgLists(texts, truths, args)["averages"]
    scores = cityscapes_scores(matches, CITYSCAPES)
    assert scores["AP"][0] == pytest.approx(100 * expected["allAp"], abs=1e-9)
    assert scores["AP50"][0] == pytest.approx(100 * float(expected["allAp50%"]), abs=1e-9)
    assert 10 < scores["AP"][0] < 90
