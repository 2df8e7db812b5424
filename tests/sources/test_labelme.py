"""labelme's files: its shapes become ids as in labelme itself, and what is wrong is said."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.table_file import ClassEntry, make_table
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.labelme import read_labelme
from d2_cityscapes.sources.objects import ObjectSource

SIZE = (6, 10)
TABLE = make_table("own", [ClassEntry("quay", 3), ClassEntry("ship", 4, thing=True)])


def shape(label: str, points: list, kind: str | None = "polygon", **more: object) -> dict:
    return {
        "label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {},
        "description": "", "mask": None, **more,
    }  # fmt: skip


def rectangle(label: str, left: float, top: float, right: float, bottom: float, **more) -> dict:
    return shape(label, [[left, top], [right, bottom]], "rectangle", **more)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A folder with a picture and its JSON of these shapes; called again, with one more."""

    def make(drawn: list[dict], *, name: str = "a", **changes: object) -> Path:
        content = {
            "version": "5.5.0", "flags": {}, "shapes": drawn, "imagePath": f"{name}.png",
            "imageData": "bm8gcGljdHVyZQ==", "imageHeight": SIZE[0], "imageWidth": SIZE[1],
            **changes,
        }  # fmt: skip
        (tmp_path / f"{name}.json").parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.png")
        return tmp_path

    return make


def read(folder: Path, table: LabelTable = TABLE) -> list[ObjectSource]:
    return read_labelme(folder).splits(table, split="train")["train"]


def ids(folder: Path) -> np.ndarray:
    (source,) = read(folder)
    assert source.problems(TABLE) == []
    return source.instance_ids()


def test_shapes_groups_and_order(folder) -> None:
    """Worked by hand: a rectangle's last row and column are in it, as labelme draws; two shapes of
    one group are one ship, under a ship of its own; corners come in any order."""
    path = folder(
        [
            rectangle("quay", 0, 4, 9, 5),
            rectangle("ship", 1, 2, 0, 0, group_id=5),
            rectangle("ship", 4, 1, 5, 2),
            rectangle("ship", 8, 0, 9, 1, group_id=5),
            rectangle("ship", 5, 2, 6, 3, group_id=None),
            rectangle("_background_", 0, 0, 0, 0),
        ]
    )
    expected = """
           0 4000 0 0    0    0    0 0 4000 4000
        4000 4000 0 0 4001 4001    0 0 4000 4000
        4000 4000 0 0 4001 4002 4002 0    0    0
           0    0 0 0    0 4002 4002 0    0    0
           3    3 3 3    3    3    3 3    3    3
           3    3 3 3    3    3    3 3    3    3"""
    np.testing.assert_array_equal(ids(path), np.array(expected.split(), int).reshape(SIZE))


def _labelme_mask(points: list, kind: str | None) -> np.ndarray:
    """What labelme's shape_to_mask draws, by its rules: bool (H, W)."""
    picture = Image.new("L", SIZE[::-1], 0)
    pen = ImageDraw.Draw(picture)
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points
        r = math.hypot(x - edge_x, y - edge_y)
        pen.ellipse([x - r, y - r, x + r, y + r], outline=1, fill=1)
    else:
        pen.polygon([tuple(p) for p in points], outline=1, fill=1)
    return np.array(picture, bool)


@pytest.mark.parametrize("kind", ["polygon", None, "oriented_rectangle", "circle"])
def test_polygons_and_circles_are_drawn_as_labelme_does(folder, kind: str | None) -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        points = (rng.random((2 if kind == "circle" else 5, 2)) * 9 - 1).round(2).tolist()
        found = ids(folder([shape("ship", points, kind)]))
        np.testing.assert_array_equal(found, np.where(_labelme_mask(points, kind), 4000, 0))


def _png(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_masks_of_labelmes_ai_tools(folder) -> None:
    """The mask lies at the first point; beyond the picture, and the second point, it ends."""
    mask = np.array([[1, 0, 1], [0, 1, 1]], bool)
    text = _png(mask)
    path = folder(
        [
            shape("ship", [[2.0, 1.0], [4.0, 2.0]], "mask", mask=text),
            shape("ship", [[8.0, 5.0], [10.0, 6.0]], "mask", mask=text),
            shape("ship", [[6.0, 0.0], [7.0, 0.0]], "mask", mask=text),
            shape("ship", [[-1.6, 3.4], [1.0, 5.0]], "mask", mask=text),
        ]
    )
    expected = np.zeros(SIZE, int)
    expected[1:3, 2:5][mask] = 4000
    expected[5, 8] = 4001
    expected[0, 6] = 4002
    expected[3:5, 0:1][mask[:, 2:]] = 4003
    np.testing.assert_array_equal(ids(path), expected)


def test_what_has_no_area_is_passed_over_and_counted(folder) -> None:
    path = folder(
        [
            shape("ship", [[1, 1]], "point"),
            shape("ship", [[1, 1], [2, 2]], "line"),
            shape("ship", [[1, 1], [2, 2], [4, 2]], "linestrip"),
            shape("ship", [[1, 1], [2, 2]]),
            shape("ship", [[1, 1], [2, 2]], "spline"),
            rectangle("ship", 3, 3, 4, 4),
            rectangle("ship", 2, 2, 5, 5),
            rectangle("ship", 20, 20, 30, 30),
        ]
    )
    (source,) = read(path)
    assert source.skipped() == {
        "lines and points": 3,
        "outlines of fewer than 3 points": 1,
        "shapes of the unknown type 'spline'": 1,
        "objects without a visible pixel (hidden by later ones, or outside)": 2,
    }
    assert np.unique(source.instance_ids()).tolist() == [0, 4001]


def test_labels_in_use_are_things_by_name(folder) -> None:
    folder([rectangle("ship", 0, 0, 1, 1), rectangle("crane", 0, 0, 1, 1)])
    path = folder([shape("buoy", [[1, 1]], "point"), rectangle("quay", 0, 0, 1, 1)], name="b")
    found = read_labelme(path)
    table = found.table("own", stuff=["quay"])
    assert [(c.name, c.label_id, c.is_thing) for c in table.classes] == [
        ("crane", 1, True), ("quay", 3, False), ("ship", 2, True),
    ]  # fmt: skip
    with pytest.raises(SourceError, match=r"no class 'quai' to make stuff of; nearest: quay"):
        found.table("own", stuff=["quai"])
    with pytest.raises(
        SourceError, match=r"labels that .* own does not have: 'crane' \(1 objects\)"
    ):
        found.splits(TABLE)


def test_what_is_annotated_nowhere_may_be_a_class(folder) -> None:
    """But not what is void by its label."""
    path = folder([rectangle("ship", 0, 0, 3, 3), rectangle("__ignore__", 2, 2, 5, 5)])
    found = read_labelme(path)
    table = found.table("own", background="other")
    assert [(c.name, c.label_id, c.is_thing) for c in table.classes] == [
        ("ship", 1, True), ("other", 2, False),
    ]  # fmt: skip
    (source,) = found.splits(table, split="train", background="other")["train"]
    (plain,) = found.splits(table, split="train")["train"]
    expected = np.full(SIZE, 2)
    expected[:4, :4], expected[2:6, 2:6] = 1000, 0
    np.testing.assert_array_equal(source.instance_ids(), expected)
    np.testing.assert_array_equal(plain.instance_ids(), np.where(expected == 2, 0, expected))
    assert source.fingerprint != plain.fingerprint and source.skipped() == {}
    for name in ("ship", "othre"):
        with pytest.raises(SourceError, match=f"the background '{name}' is no class of stuff of"):
            found.splits(table, split="train", background=name)
    (class_,) = found.table("own", background="ship").classes
    assert not class_.is_thing


def test_pictures_in_folders_of_ones_own(folder, tmp_path: Path, caplog) -> None:
    """JSON files may lie elsewhere below the folder, as with labelme's --output; hidden ones and
    pictures without a JSON are passed over."""
    (tmp_path / "pictures").mkdir()
    for name in ("pictures/a", "pictures/b"):
        Image.new("RGB", SIZE[::-1]).save(tmp_path / f"{name}.jpg")
    path = folder([rectangle("ship", 0, 0, 1, 1)], name="labels/x", imagePath="..\\pictures\\a.jpg")
    (tmp_path / "labels" / "x.png").unlink()
    (tmp_path / "labels" / "._x.json").write_bytes(b"\0")
    (source,) = read(path)
    assert source.image_path == tmp_path / "pictures" / "a.jpg" and source.file_name == "a.jpg"
    assert source.problems(TABLE) == []
    assert "passed over 1 pictures without a JSON" in caplog.text
    assert "passed over 1 file with a dot in front" in caplog.text


def test_sizes_come_from_the_picture_where_the_file_has_none(folder) -> None:
    path = folder([rectangle("ship", 0, 0, 1, 1)], imageHeight=None, imageWidth=None)
    assert (ids(path) == 4000).sum() == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"imagePath": "../a.png"}, "imagePath '../a.png' leads out of"),
        ({"imagePath": "/etc/a.png"}, "imagePath '/etc/a.png' leads out of"),
        ({"imagePath": "C:\\Users\\a.png"}, "leads out of"),
        ({"imagePath": ""}, "imagePath '' leads out of"),
        ({"imagePath": 3}, "not a file of labelme"),
        ({"imagePath": None}, "not a file of labelme"),
        ({"imageHeight": "6"}, "imageHeight '6', imageWidth 10"),
        ({"imageHeight": None}, "imageHeight None, imageWidth 10"),
        ({"shapes": None}, "not a file of labelme"),
        ({"shapes": [3]}, "not a file of labelme"),
        ({"shapes": [{"label": "ship"}]}, "not a file of labelme"),
        ({"shapes": [shape(None, [])]}, "shape 0: label 'None' is no text"),
        ({"shapes": [shape("ship", 3)]}, "not a file of labelme"),
        ({"shapes": [shape("ship", [[1, 1]], "circle")]}, "shape 0: a circle of 1 points; it"),
    ],
)  # fmt: skip
def test_files_that_cannot_be(folder, changes: dict, message: str) -> None:
    path = folder([], **changes)
    with pytest.raises(SourceError) as caught:
        read_labelme(path)
    assert f"{path / 'a.json'}: " in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_with_a_dot_in_front_or_a_line_break(folder) -> None:
    for name in (".a.png", "a\nb.png", "x/.y/a.png"):
        with pytest.raises(
            SourceError, match=r"a.json: .* is not the name of a file in the folder"
        ):
            read(folder([], imagePath=name))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "", "\0"])
def test_jsons_of_another_kind(folder, text: str) -> None:
    path = folder([])
    (path / "b.json").write_text(text)
    (path / "c.json").write_text(text)
    with pytest.raises(
        SourceError, match=r"2 problems: .*b.json: not a file of labelme.*c.json: n"
    ):
        read_labelme(path)


def test_two_files_of_one_picture_and_none_at_all(folder, tmp_path: Path) -> None:
    folder([])
    path = folder([], name="b", imagePath="a.png")
    with pytest.raises(SourceError, match=r"b.json: of the same picture as .*a.json"):
        read_labelme(path)
    with pytest.raises(SourceError, match=r"no \*.json; expected labelme's files"):
        read_labelme(tmp_path / "empty")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape("ship", [[0, 0], [float("nan"), 0], [1, 1]]), "a polygon has points far outside"),
        (shape("ship", [[0, 0], [10**30, 0], [1, 1]]), "a polygon has points far outside"),
        (shape("ship", [[0, 0], [2**20, 2**20]] * 5), "outline of more than 2097152 pixels"),
        (shape("ship", [[0, 0], [float("inf"), 0]], "circle"), "a circle has points far outside"),
        (shape("ship", [[0, 0], ["1", 0], [1, 1]]), "not an annotation that can be dr"),
        (shape("ship", [[0, 0], [1], [1, 1]]), "not an annotation that can be dr"),
        (shape("ship", [[0, 0], [1, 1]], "mask"), "not an annotation that can be dr"),
        (shape("ship", [[0, 0], [1, 1]], "mask", mask="§"), "not an annotation that can be dr"),
        (shape("ship", [[0, 0], [1, 1]], "mask", mask="AAAA"), "the mask of a shape: not a rea"),
        (
            shape("ship", [[0, 0], [1, 1]], "mask", mask=_png(np.ones((9, 9)))[:60]),
            "the mask of a shape: ",
        ),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be(folder, bad: dict, message: str) -> None:
    path = folder([bad])
    (source,) = read(path)
    (problem,) = source.problems(TABLE)
    assert problem.startswith(f"{path / 'a.json'}: ") and message in problem
    assert "\n" not in problem


def test_thousand_instances_and_no_more(folder) -> None:
    read(folder([rectangle("ship", 0, 0, 1, 1)] * 1000))
    with pytest.raises(SourceError, match=r"a.json: more than 1000 instances of ship"):
        read(folder([rectangle("ship", 0, 0, 1, 1)] * 1001))
    read(folder([rectangle("ship", 0, 0, 1, 1, group_id=1)] * 1001))


# splits and rooms, of any format -----------------------------------------------------------------


@pytest.fixture
def twenty(folder) -> Path:
    for number in range(20):
        path = folder([rectangle("ship", 0, 0, 1, 1)], name=f"street_{number}")
    return path


def test_a_share_becomes_val_by_name(twenty, tmp_path_factory) -> None:
    """The same pictures whatever else is there, and however the folder is called."""
    splits = read_labelme(twenty).splits(TABLE, val_share=0.2)
    names = {split: [s.file_name for s in sources] for split, sources in splits.items()}
    assert len(names["val"]) == 4 and len(names["train"]) == 16
    assert names["train"] == sorted(names["train"])
    other = tmp_path_factory.mktemp("other") / "copy"
    twenty.rename(other)
    again = read_labelme(other).splits(TABLE, val_share=0.2)
    assert [s.file_name for s in again["val"]] == names["val"]
    limited = read_labelme(other).splits(TABLE, val_share=0.2, limit=3)
    assert [len(sources) for sources in limited.values()] == [3, 3]
    for share in (0, 1, 0.99, -1, float("nan")):
        with pytest.raises(SourceError, match=r"20 pictures, a share of .* for val"):
            read_labelme(other).splits(TABLE, val_share=share)
    with pytest.raises(SourceError, match="limit 0"):
        read_labelme(other).splits(TABLE, limit=0)


def test_the_room_is_that_of_the_largest_picture(folder) -> None:
    path = folder([rectangle("ship", 0, 0, 1, 1)])
    folder([], name="wide", imageHeight=4, imageWidth=20)
    Image.new("RGB", (20, 4)).save(path / "wide.png")
    sources = read(path)
    assert [s.canvas for s in sources] == [(6, 20)] * 2
    assert [s.size for s in sources] == [(6, 10), (4, 20)]
    (small, shrunk) = read_labelme(path).splits(TABLE, split="x", canvas=(6, 10))["x"]
    assert small.size == (6, 10) and shrunk.size == (2, 10)
    assert small.fingerprint != sources[0].fingerprint
