"""COCO panoptic files as instance ids: by hand, against createPanopticImgs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from PIL import Image

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.png import PngError
from d2_cityscapes.sources.coco_panoptic import read_coco_panoptic
from d2_cityscapes.sources.errors import SourceError

# 0 is void; 70000 = 112 + 1 * 256 + 1 * 65536 is larger than any instance id
SEGMENTS = np.array([[0, 3, 3, 70000], [9, 9, 70000, 70000]])


def write(folder: Path, segments_info: list[dict], pixels: np.ndarray = SEGMENTS, **more) -> Path:
    """NAME.json and NAME/a.png."""
    (folder / "val").mkdir(parents=True)
    rgb = np.stack([pixels % 256, pixels // 256 % 256, pixels // 65536], axis=2)
    Image.fromarray(rgb.astype(np.uint8)).save(folder / "val" / "a.png")
    annotation = {"image_id": "a", "file_name": "a.png", "segments_info": segments_info}
    (folder / "val.json").write_text(json.dumps({"annotations": [annotation], **more}))
    return folder / "val.json"


def info(*segments: tuple[int, int], **more: Any) -> list[dict]:
    return [{"id": i, "category_id": c, **more} for i, c in segments]


ROAD_AND_CARS = info((3, 7), (70000, 26), (9, 26))


def test_segments_become_instance_ids(tmp_path: Path) -> None:
    maps, categories = read_coco_panoptic(write(tmp_path, ROAD_AND_CARS), groups=True)
    expected = [[0, 7, 7, 26001], [26000, 26000, 26001, 26001]]
    assert maps["a"].read().tolist() == expected
    assert categories[26].name == "car"
    assert len(categories) == 19


def test_groups_count_in_the_truth_alone(tmp_path: Path) -> None:
    """The official tools do not look at iscrowd of a prediction."""
    json_path = write(tmp_path, info((3, 7), (70000, 24)) + info((9, 26), iscrowd=1))
    truth = read_coco_panoptic(json_path, groups=True)[0]["a"].read()
    prediction = read_coco_panoptic(json_path, groups=False)[0]["a"].read()
    assert truth[1].tolist() == [26, 26, 24000, 24000]
    assert prediction[1].tolist() == [26000, 26000, 24000, 24000]


def test_categories_are_recognised_by_name(tmp_path: Path) -> None:
    categories = [
        {"id": 0, "name": "road", "isthing": 0},
        {"id": 13, "name": "car", "isthing": 1},
        {"id": 14, "name": "spaceship", "isthing": 1},
    ]
    with_train_ids = info((3, 0), (70000, 13), (9, 13))
    json_path = write(tmp_path / "own", with_train_ids, categories=categories)
    maps, found = read_coco_panoptic(json_path, groups=True)
    assert maps["a"].read()[0].tolist() == [0, 7, 7, 26001]
    assert {i: c.name for i, c in found.items()} == {0: "road", 13: "car"}
    without = write(tmp_path / "given", with_train_ids)
    maps, _ = read_coco_panoptic(without, groups=False, categories=found)
    assert maps["a"].read()[0].tolist() == [0, 7, 7, 26001]


@pytest.mark.parametrize("train_ids", [False, True])
def test_create_panoptic_imgs_is_undone(
    tmp_path: Path, paint: Callable, train_ids: bool, capsys: pytest.CaptureFixture
) -> None:
    """Up to what it leaves out, all that is not evaluated, and to the numbers of instances."""
    truths = {}
    (tmp_path / "val" / "town").mkdir(parents=True)
    for seed in range(5):
        name = f"town_{seed:06d}_000019"
        truths[name] = paint(seed)
        ids = Image.fromarray(truths[name].astype(np.uint16))
        ids.save(tmp_path / "val" / "town" / f"{name}_gtFine_instanceIds.png")
    convert2panoptic(str(tmp_path), str(tmp_path), train_ids, ["val"])
    capsys.readouterr()
    name = f"cityscapes_panoptic_val{'_trainId' * train_ids}.json"
    maps, _ = read_coco_panoptic(tmp_path / name, groups=True)
    assert maps.keys() == truths.keys()
    for image, truth in truths.items():
        ids = maps[image].read()
        void = CITYSCAPES.train_id_of[truth] == 255
        assert not ids[void].any()
        pairs = set(zip(truth[~void].tolist(), ids[~void].tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
        assert all((a == b) if a < 1000 else (a // 1000 == b // 1000) for a, b in pairs)


def test_a_thousand_instances_of_a_class_and_no_more(tmp_path: Path) -> None:
    pixels = np.arange(1, 1002)[None]
    json_path = write(tmp_path / "a", info(*((i, 24) for i in range(1, 1001))), pixels[:, :-1])
    ids = read_coco_panoptic(json_path, groups=True)[0]["a"].read()
    np.testing.assert_array_equal(ids, 23999 + pixels[:, :-1])
    json_path = write(tmp_path / "b", info(*((i, 24) for i in range(1, 1002))), pixels)
    with pytest.raises(SourceError, match=r"more than 1000 segments \(person\)"):
        read_coco_panoptic(json_path, groups=True)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (info((3, 7), (9, 7)), r"image a: more than 1 segment \(road\)"),
        (info((3, 26), (9, 26), iscrowd=1), r"more than 1 segment \(group region of car\)"),
        (info((3, 7), (3, 26)), "segment 3 is listed twice"),
        (info((0, 7)), "segment 0 is void"),
        (info((3, 1)), "segment 3 has the unknown category 1"),
        ([{"id": 3}], "not COCO panoptic .*category_id"),
        ([3], "not COCO panoptic"),
        (info((3.0, 7)), "image a: id 3.0 is no whole number"),
        (info(("3", 7)), "image a: id '3' is no whole number"),
        (info((True, 7)), "image a: id True is no whole number"),
        (info((-3, 7)), "image a: segment -3 cannot be the colour of a pixel"),
        (info((256**3, 7)), "image a: segment 16777216 cannot be the colour of a pixel"),
        (info((3, "car")), "image a: category_id 'car' is no whole number"),
        (info((3, [7])), r"image a: category_id \[7\] is no whole number"),
        ({"a": 1}, "not COCO panoptic"),
    ],
)
def test_refused_json(tmp_path: Path, segments: list, message: str) -> None:
    json_path = write(tmp_path, segments)
    with pytest.raises(SourceError, match=message) as caught:
        read_coco_panoptic(json_path, groups=True)
    assert str(caught.value).startswith(str(json_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../secret.png", "ABSOLUTE", "..", "b/../../secret.png", "..\\secret.png", "", 3, None]
)
def test_no_png_lies_outside_of_the_folder(tmp_path: Path, name: Any) -> None:
    json_path = write(tmp_path, ROAD_AND_CARS)
    (tmp_path / "val" / "a.png").rename(tmp_path / "secret.png")
    name = str(tmp_path / "secret.png") if name == "ABSOLUTE" else name
    annotation = {"image_id": "a", "file_name": name, "segments_info": ROAD_AND_CARS}
    json_path.write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(SourceError, match="is not the name of a file in this folder"):
        read_coco_panoptic(json_path, groups=True)


def test_pngs_may_lie_in_folders_below(tmp_path: Path) -> None:
    json_path = write(tmp_path, ROAD_AND_CARS)
    (tmp_path / "val" / "town").mkdir()
    (tmp_path / "val" / "a.png").rename(tmp_path / "val" / "town" / "a.png")
    annotation = {"image_id": 17, "file_name": "town/a.png", "segments_info": ROAD_AND_CARS}
    json_path.write_text(json.dumps({"annotations": [annotation]}))
    maps, _ = read_coco_panoptic(json_path, groups=True)
    assert maps["17"].read().any()


@pytest.mark.parametrize("image_id", [None, 1.5, ["a"], True])
def test_images_have_names_or_numbers(tmp_path: Path, image_id: Any) -> None:
    json_path = write(tmp_path, ROAD_AND_CARS)
    annotation = {"image_id": image_id, "file_name": "a.png", "segments_info": []}
    json_path.write_text(json.dumps({"annotations": [annotation]}))
    with pytest.raises(SourceError, match=r"image_id .* is no whole number"):
        read_coco_panoptic(json_path, groups=True)


def test_categories_are_listed_once(tmp_path: Path) -> None:
    categories = [{"id": 26, "name": "car"}, {"id": 26, "name": "person"}]
    with pytest.raises(SourceError, match="category 26 is listed twice"):
        read_coco_panoptic(write(tmp_path, [], categories=categories), groups=True)


def test_json_too_large_to_be_one(tmp_path: Path) -> None:
    json_path = write(tmp_path, ROAD_AND_CARS)
    with open(json_path, "r+b") as file:
        file.truncate((1 << 30) + 1)  # sparse: it takes no place
    with pytest.raises(SourceError, match="larger than 1024 MiB"):
        read_coco_panoptic(json_path, groups=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"annotations": 3}',
        '{"annotations": [{}]}',
        '{"annotations": [3]}',
        '{"categories": 3, "annotations": []}',
        '{"categories": [3], "annotations": []}',
        "[" * 100_000,
        '{"annotations": ' * 100_000,
        '{"annotations": [{"image_id": ' + "1" * 5000 + "}]}",
    ],
)
def test_json_of_something_else(tmp_path: Path, text: str) -> None:
    json_path = write(tmp_path, [])
    json_path.write_text(text)
    with pytest.raises(SourceError, match="not COCO panoptic"):
        read_coco_panoptic(json_path, groups=True)


def test_things_that_the_json_calls_stuff(tmp_path: Path) -> None:
    categories = [{"id": 26, "name": "car", "isthing": 0}]
    with pytest.raises(SourceError, match="isthing of car is 0"):
        read_coco_panoptic(write(tmp_path, [], categories=categories), groups=True)


def test_one_image_twice(tmp_path: Path) -> None:
    json_path = write(tmp_path, ROAD_AND_CARS)
    document = json.loads(json_path.read_text())
    json_path.write_text(json.dumps({"annotations": document["annotations"] * 2}))
    with pytest.raises(SourceError, match="image a is listed twice"):
        read_coco_panoptic(json_path, groups=True)


def test_png_and_json_must_agree(tmp_path: Path) -> None:
    """As in the official tool, which raises a KeyError for both."""
    for name, segments, message in (
        ("unlisted", info((3, 7), (9, 26)), "segment 70000 which the JSON does not list"),
        ("unseen", [*ROAD_AND_CARS, *info((8, 11))], "segment 8 of the JSON has no pixel"),
    ):
        maps, _ = read_coco_panoptic(write(tmp_path / name, segments), groups=False)
        with pytest.raises(SourceError, match=message) as caught:
            maps["a"].read()
        assert str(tmp_path / name / "val" / "a.png") in str(caught.value)


def test_png_must_be_rgb(tmp_path: Path) -> None:
    maps, _ = read_coco_panoptic(write(tmp_path, ROAD_AND_CARS), groups=False)
    Image.fromarray(SEGMENTS.astype(np.uint8)).save(tmp_path / "val" / "a.png")
    with pytest.raises(PngError, match="grey with 8 bits, expected RGB"):
        maps["a"].read()
