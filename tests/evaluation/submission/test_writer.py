"""Submissions: the official tools read what is written, and give the numbers of the evaluators."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import referee
import torch
from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as official_panoptic
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official_semantic
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_cityscapes.data.register import register_cityscapes_shards
from d2_cityscapes.drawing.pictures import PictureWriter
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.evaluation.panoptic.quality import InvalidMapError, PanopticQuality
from d2_cityscapes.evaluation.semantic.scores import SemSegQuality
from d2_cityscapes.evaluation.submission.writer import (
    PanopticSubmissionWriter,
    SemSegSubmissionWriter,
)
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.writer import write_shards

NAME = "submission_scenes"
SIZE = (48, 96)


@pytest.fixture(scope="module")
def truth(paint: Callable) -> dict[str, np.ndarray]:
    return {f"town_000000_{i:06d}": paint(i, SIZE, 20) for i in range(3)}


@pytest.fixture(scope="module")
def inputs(truth: dict, tmp_path_factory: pytest.TempPathFactory, array_source: type):
    pixels = np.zeros((*SIZE, 3), np.uint8)
    sources = [array_source(f"{n}_leftImg8bit.png", pixels, ids) for n, ids in truth.items()]
    folder = tmp_path_factory.mktemp("shards")
    write_shards(sources, folder, split="val", partitions=1)
    register_cityscapes_shards(NAME, folder, split="val")
    yield DatasetCatalog.get(NAME)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def tree(truth: dict, tmp_path: Path) -> Path:
    """gtFine of a Cityscapes tree with the truth."""
    folder = tmp_path / "gtFine" / "val" / "town"
    folder.mkdir(parents=True)
    for name, ids in truth.items():
        labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{name}_gtFine_labelIds.png")
        Image.fromarray(ids.astype(np.uint16)).save(folder / f"{name}_gtFine_instanceIds.png")
    return folder.parents[1]


def sem_seg(ids: np.ndarray) -> dict:
    """A semantic output, void where the ids are."""
    return {"sem_seg": torch.from_numpy(CITYSCAPES.train_id_of[ids])}


def panoptic_seg(ids: np.ndarray) -> tuple[dict, np.ndarray]:
    """A panoptic output, and the instance ids that it claims: those without groups."""
    segments, info, kept = np.zeros(ids.shape, np.int64), [], np.zeros_like(ids)
    for value in np.unique(ids).tolist():
        train_id = int(CITYSCAPES.train_id_of[value])
        if train_id < 255 and (value >= 1000 or not CITYSCAPES.classes[train_id].is_thing):
            info.append({"id": len(info) + 3, "category_id": train_id})
            segments[ids == value] = info[-1]["id"]
            kept[ids == value] = value
    return {"panoptic_seg": (torch.from_numpy(segments), info)}, kept


def test_semantic(
    truth: dict,
    inputs: list[dict],
    tree: Path,
    disturb: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    referee.mend(monkeypatch)
    folder, quality = tmp_path / "semantic", SemSegQuality()
    writer = SemSegSubmissionWriter(NAME, folder)
    for i, image in enumerate(inputs):
        ids = truth[image["image_id"]]
        output = sem_seg(disturb(ids, i))
        quality.update(output["sem_seg"], ids)
        writer.process([image], [output])
    assert writer.evaluate() == {}
    assert sorted(p.name for p in folder.iterdir()) == [f"{name}_labelIds.png" for name in truth]

    args = copy.copy(official_semantic.args)
    args.predictionPath, args.predictionWalk = str(folder), None
    args.JSONOutput, args.quiet = False, True
    truths = [str(p) for p in sorted(tree.rglob("*_labelIds.png"))]
    found = [official_semantic.getPrediction(args, path) for path in truths]
    expected = official_semantic.evaluateImgLists(found, truths, args)
    capsys.readouterr()
    scores = quality.compute()
    assert scores["mIoU"] == pytest.approx(100 * expected["averageScoreClasses"])
    assert scores["iIoU"] == pytest.approx(100 * expected["averageScoreInstClasses"])


def test_semantic_scores_become_their_best_class(inputs: list[dict], tmp_path: Path) -> None:
    scores = torch.zeros(19, 2, 2)
    scores[13, 0, 0] = scores[18, 1, 1] = 1
    writer = SemSegSubmissionWriter(NAME, tmp_path)
    writer.process(inputs[:1], [{"sem_seg": scores}])
    with Image.open(next(tmp_path.iterdir())) as picture:
        assert picture.mode == "L"
        assert np.asarray(picture).tolist() == [[26, 7], [7, 33]]


def test_panoptic(
    truth: dict,
    inputs: list[dict],
    tree: Path,
    disturb: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    folder, quality = tmp_path / "panoptic", PanopticQuality()
    writer = PanopticSubmissionWriter(NAME, folder)
    for i, image in enumerate(inputs):
        ids = truth[image["image_id"]]
        output, predicted = panoptic_seg(disturb(ids, i))
        quality.update(predicted, ids)
        writer.process([image, image], [output, output])
    assert writer.evaluate() == {}
    assert sorted(p.name for p in folder.iterdir()) == [
        "cityscapes_panoptic_val",
        "cityscapes_panoptic_val.json",
    ]

    convert2panoptic(str(tree), str(tmp_path), setNames=["val"])
    names = [str(root / "cityscapes_panoptic_val") for root in (tmp_path, folder)]
    arguments = [text for name in names for text in (f"{name}.json", name)]
    expected = official_panoptic.evaluatePanoptic(*arguments, str(tmp_path / "results.json"))
    capsys.readouterr()
    scores = quality.compute()
    for ours, group in (("PQ", "All"), ("PQ_th", "Things"), ("PQ_st", "Stuff")):
        assert scores[ours] == pytest.approx(100 * expected[group]["pq"], abs=1e-9)
    assert 5 < scores["PQ"] < 95


def test_panoptic_files_by_hand(inputs: list[dict], tmp_path: Path) -> None:
    """Two cars, road and void; ids above 255 spread over the colours."""
    segments = torch.tensor([[1, 2], [0, 3]])
    info = [{"id": 1, "category_id": 13}, {"id": 2, "category_id": 13}, {"id": 3, "category_id": 0}]
    writer = PanopticSubmissionWriter(NAME, tmp_path)
    writer.process(inputs[:1], [{"panoptic_seg": (segments, info)}])
    writer.evaluate()
    with Image.open(next(tmp_path.rglob("*.png"))) as picture:
        colors = np.asarray(picture).astype(int)
    assert (colors @ [1, 256, 256 * 256]).tolist() == [[26000, 26001], [0, 7]]
    document = json.loads((tmp_path / "cityscapes_panoptic_val.json").read_text())
    name = inputs[0]["image_id"]
    assert document["annotations"] == [
        {
            "image_id": name,
            "file_name": f"{name}_panoptic.png",
            "segments_info": [
                {"id": 7, "category_id": 7},
                {"id": 26000, "category_id": 26},
                {"id": 26001, "category_id": 26},
            ],
        }
    ]
    assert document["images"] == [
        {"id": name, "width": 2, "height": 2, "file_name": f"{name}_leftImg8bit.png"}
    ]
    by_id = {c["id"]: (c["name"], c["isthing"]) for c in document["categories"]}
    assert len(by_id) == 19 and by_id[26] == ("car", 1) and by_id[7] == ("road", 0)


def test_a_new_evaluation_begins_anew(inputs: list[dict], tmp_path: Path) -> None:
    empty = {"panoptic_seg": (torch.zeros(SIZE, dtype=torch.int32), [])}
    writer = PanopticSubmissionWriter(NAME, tmp_path)
    writer.process(inputs[:2], [empty, empty])
    writer.reset()
    writer.process(inputs[2:], [empty])
    writer.evaluate()
    document = json.loads((tmp_path / "cityscapes_panoptic_val.json").read_text())
    assert [a["image_id"] for a in document["annotations"]] == [inputs[2]["image_id"]]
    assert document["annotations"][0]["segments_info"] == []


@pytest.mark.parametrize("name", ["../outside", "ABSOLUTE", "..\\outside", "town/../../outside"])
def test_no_name_leads_out_of_the_folder(
    name: str, truth: dict, inputs: list[dict], tmp_path: Path
) -> None:
    """Names are those of the files of a dataset, which may be somebody else's."""
    ids = truth[inputs[0]["image_id"]]
    image = inputs[0] | {"image_id": name.replace("ABSOLUTE", f"{tmp_path}/outside")}
    output = sem_seg(ids) | panoptic_seg(ids)[0]
    pictures = PictureWriter(NAME, tmp_path / "in" / "pictures", 1)
    pictures._chosen = {image["image_id"]}
    for writer in (
        SemSegSubmissionWriter(NAME, tmp_path / "in" / "semantic"),
        PanopticSubmissionWriter(NAME, tmp_path / "in" / "panoptic"),
        pictures,
    ):
        with pytest.raises(D2CityscapesError, match="not the name of a file in this folder"):
            writer.process([image], [output])
    assert not list(tmp_path.rglob("*outside*"))


def test_what_the_data_do_not_have_is_refused(inputs: list[dict], tmp_path: Path) -> None:
    name = inputs[0]["image_id"]
    for writer, output in (
        (SemSegSubmissionWriter, {"sem_seg": torch.full(SIZE, 40)}),
        (SemSegSubmissionWriter, {"sem_seg": torch.full((19, *SIZE), torch.nan)}),
        (
            PanopticSubmissionWriter,
            {"panoptic_seg": (torch.ones(SIZE, dtype=int), [{"id": 1, "category_id": 60}])},
        ),
    ):
        with pytest.raises(InvalidMapError, match=f"{name}: "):
            writer(NAME, tmp_path / "out").process(inputs[:1], [output])
    assert not (tmp_path / "out").exists()
