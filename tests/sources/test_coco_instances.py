"""COCO's JSON of objects: what annotation tools write becomes ids, and what is wrong is said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api
from pycocotools.coco import COCO

from d2_cityscapes.labels.table_file import ClassEntry, make_table
from d2_cityscapes.sources.coco_instances import read_coco_instances
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.objects import ObjectSource

SIZE = (6, 8)


def box(x: float, y: float, w: float, h: float) -> list[float]:
    return [x, y, x, y + h, x + w, y + h, x + w, y]


def annotation(category: int, segmentation: object, **more: object) -> dict:
    """The keys that every tool writes, but for "id"."""
    return {
        "image_id": 1, "category_id": category, "segmentation": segmentation,
        "iscrowd": 0, "bbox": [0, 0, 1, 1], "area": 1.0, **more,
    }  # fmt: skip


CATEGORIES = [
    {"id": 1, "name": "water", "isthing": 0},
    {"id": 18, "name": "ship", "supercategory": "vessel"},
    {"id": 3, "name": "crane", "isthing": 1},
]


@pytest.fixture
def document(tmp_path: Path) -> Callable[..., Path]:
    """The path of a JSON with these annotations of one picture, in a folder with the picture."""

    def make(objects: list[dict], **changes: object) -> Path:
        numbered = [{"id": i + 10, **one} for i, one in enumerate(objects)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": numbered, "categories": CATEGORIES, **changes,
        }  # fmt: skip
        for image in content["images"]:
            name = image["file_name"] if isinstance(image, dict) else ""
            path = tmp_path / str(name).replace("\\", "/")
            if tmp_path in path.resolve().parents and path.suffix == ".png":
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (SIZE[1], SIZE[0])).save(path)
        (tmp_path / "objects.json").write_text(json.dumps(content))
        return tmp_path / "objects.json"

    return make


def read(path: Path, **options) -> list[ObjectSource]:
    found = read_coco_instances(path, path.parent, **options)
    table = found.table("harbour")
    return found.splits(table, split="train")["train"]


def ids(path: Path, **options) -> np.ndarray:
    (source,) = read(path, **options)
    return source.instance_ids()


def rle(mask: np.ndarray, *, compressed: bool) -> dict:
    encoded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


def test_polygons_parts_groups_and_order(document) -> None:
    """Worked by hand: the second ship covers a part of the first, which has two parts; the group
    is a plain id, so is stuff; a crane is hidden entirely."""
    path = document(
        [
            annotation(1, [box(0, 4, 8, 2)]),
            annotation(18, [box(0, 0, 2, 3), box(4, 0, 2, 3)]),
            annotation(3, [box(5, 2, 1, 1)]),
            annotation(18, [box(5, 1, 2, 2)]),
            annotation(18, rle(np.pad([[1, 1]], ((3, 2), (0, 6))) > 0, compressed=True), iscrowd=1),
        ]
    )
    expected = """
        18000 18000 0 0 18000 18000     0 0
        18000 18000 0 0 18000 18001 18001 0
        18000 18000 0 0 18000 18001 18001 0
           18    18 0 0     0     0     0 0
            1     1 1 1     1     1     1 1
            1     1 1 1     1     1     1 1"""
    np.testing.assert_array_equal(ids(path), np.array(expected.split(), int).reshape(SIZE))
    (source,) = read(path)
    (reason,) = source.skipped()
    assert reason.startswith("objects without a visible pixel") and source.skipped()[reason] == 1
    assert source.problems(read_coco_instances(path, path.parent).table("harbour")) == []


def test_masks_are_those_of_the_coco_api(document) -> None:
    rng = np.random.default_rng(3)
    annotations = []
    for _ in range(40):
        parts = [(rng.random((rng.integers(3, 7), 2)) * 12 - 2).round(2) for _ in range(2)]
        annotations.append(annotation(18, [part.ravel().tolist() for part in parts]))
        mask = rng.random(SIZE) > 0.6
        for compressed in (True, False):
            annotations.append(annotation(18, rle(mask, compressed=compressed)))
    for one in annotations:
        path = document([one])
        official = COCO()
        official.dataset = json.loads(path.read_text())
        official.createIndex()
        expected = official.annToMask(official.anns[10])
        np.testing.assert_array_equal(ids(path), np.where(expected, 18000, 0))


def test_runs_of_any_length_are_read_as_the_api_writes_them() -> None:
    """Differences of many digits, negative ones among them."""
    from d2_cityscapes.sources.coco_instances import _decompressed

    rng = np.random.default_rng(0)
    mask = np.zeros((300, 400), bool)
    for _ in range(6):
        y, x = rng.integers(0, 290), rng.integers(0, 390)
        mask[y : y + rng.integers(1, 200), x : x + rng.integers(1, 200)] ^= True
    text = rle(mask, compressed=True)["counts"]
    assert _decompressed(text) == rle(mask, compressed=False)["counts"]


@pytest.mark.parametrize(
    ("numbers", "kept"), [([1, 18, 3], True), ([1, 0, 3], False), ([1, 65, 3], False)]
)
def test_category_ids_stay_where_they_can(document, numbers: list[int], kept: bool) -> None:
    """Any numbers with any holes: else the lowest ones, things first."""
    categories = [{**c, "id": n} for c, n in zip(CATEGORIES, numbers, strict=True)]
    path = document([annotation(numbers[1], [box(0, 0, 2, 2)])], categories=categories)
    table = read_coco_instances(path, path.parent).table("harbour")
    assert [c.name for c in table.classes] == ["water", "ship", "crane"]
    assert [c.is_thing for c in table.classes] == [False, True, True]
    found = [c.label_id for c in table.classes]
    assert found == (numbers if kept else [3, 1, 2])
    assert ids(path).max() == found[1] * 1000


@pytest.mark.parametrize("above", ["vessels", "ship"])
def test_the_category_that_roboflow_puts_in_front_is_no_class(document, caplog, above) -> None:
    """It may have the name of a class, too."""
    categories = [
        {"id": 0, "name": above, "supercategory": "none"},
        {"id": 1, "name": "ship", "supercategory": above},
        {"id": 2, "name": "buoy", "supercategory": "buoy"},
    ]
    path = document([annotation(1, [box(0, 0, 2, 2)])], categories=categories)
    table = read_coco_instances(path, path.parent).table("harbour")
    assert [(c.name, c.label_id) for c in table.classes] == [("ship", 1), ("buoy", 2)]
    assert f"category 0, {above}, is no class" in caplog.text
    assert ids(path).max() == 1000
    found = read_coco_instances(
        document([annotation(0, [box(0, 0, 2, 2)])], categories=categories), path.parent
    )
    if above == "vessels":
        names = [c.name for c in found.table("harbour").classes]
        assert names == ["vessels", "ship", "buoy"]
    else:
        with pytest.raises(SourceError, match=r"2 classes of the name ship"):
            found.table("harbour")


def test_colors_of_categories(document) -> None:
    """As coco-annotator and COCO panoptic write them."""
    categories = [
        {**c, "color": color}
        for c, color in zip(CATEGORIES, ["#0a141e", [1, 2, 3], None], strict=True)
    ]
    path = document([], categories=categories)
    table = read_coco_instances(path, path.parent).table("harbour")
    assert [c.color for c in table.classes[:2]] == [(10, 20, 30), (1, 2, 3)]


def test_pictures_in_folders_and_without_objects(document) -> None:
    """Windows' \\ too; names are told apart by what they do not have in common."""
    images = [
        {"id": n, "file_name": name, "height": 6, "width": 8}
        for n, name in enumerate(["images/east/a.png", "images\\west\\a.png", "./images/b.png"], 1)
    ]
    path = document([annotation(18, [box(0, 0, 2, 2)], image_id=2)], images=images)
    sources = read(path)
    assert [s.file_name for s in sources] == ["b.png", "east_a.png", "west_a.png"]
    assert [int(s.instance_ids().max()) for s in sources] == [0, 0, 18000]
    assert pickle.loads(pickle.dumps(sources[2])).fingerprint == sources[2].fingerprint


def test_a_fingerprint_follows_what_is_said_of_this_picture_alone(document) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "height": 6, "width": 8} for n in (1, 2)]
    before = read(document([annotation(18, [box(0, 0, 2, 2)])], images=images))
    moved = [annotation(18, [box(0, 0, 2, 2)]), annotation(18, [box(0, 0, 2, 2)], image_id=2)]
    after = read(document(moved, images=images))
    assert before[0].fingerprint == after[0].fingerprint
    assert before[1].fingerprint != after[1].fingerprint


def test_boxes_without_outlines_are_asked_about(document) -> None:
    path = document([annotation(18, [], bbox=[1, 1, 2, 3]), annotation(18, [box(4, 0, 2, 2)])])
    with pytest.raises(SourceError, match=r"1 objects have a box and no outline, annotation 10 of"):
        read(path)
    found = ids(path, boxes=True)
    assert (found[1:4, 1:3] == 18000).all() and (found == 18000).sum() == 6
    for nothing in (None, [], {}):
        path = document([annotation(18, nothing, bbox=[])])
        (source,) = read(path)
        assert source.skipped() == {"objects without outline": 1}
    (source,) = read(document([annotation(18, [[1, 1, 2, 2], box(0, 0, 2, 2)])]))
    assert source.skipped() == {"outlines of fewer than 3 points": 1}
    assert (source.instance_ids() == 18000).sum() == 4


def test_a_flat_list_is_one_polygon(document) -> None:
    assert (ids(document([annotation(18, box(0, 0, 2, 2))])) == 18000).sum() == 4


def test_thousand_instances_and_no_more(document) -> None:
    path = document([annotation(18, [box(0, 0, 2, 2)])] * 1000)
    assert ids(path).max() == 18999
    with pytest.raises(
        SourceError, match=r"objects.json: image a.png: more than 1000 instances of s"
    ):
        read(document([annotation(18, [box(0, 0, 2, 2)])] * 1001))
    path = document([annotation(18, [box(0, 0, 2, 2)], iscrowd=1)] * 1001)
    assert ids(path, crowd="group").max() == 18


def test_a_file_of_crowds_is_asked_about(document) -> None:
    """CVAT writes iscrowd 1 of every mask drawn by brush."""
    mask = np.pad([[1, 1]], ((3, 2), (0, 6))) > 0
    crowds = [annotation(18, rle(mask, compressed=False), iscrowd=1)] * 2
    path = document([*crowds, annotation(18, [box(0, 0, 2, 2)])])
    with pytest.raises(
        SourceError, match=r"2 of 3 objects have iscrowd 1, .* --crowd object takes"
    ):
        read(path)
    assert np.unique(ids(path, crowd="object")).tolist() == [0, 18001, 18002]
    assert np.unique(ids(path, crowd="group")).tolist() == [0, 18, 18000]
    path = document([*crowds, *[annotation(18, [box(0, 0, 2, 2)])] * 2])
    assert np.unique(ids(path)).tolist() == [0, 18, 18001]


def test_pictures_are_jpeg_or_png(document) -> None:
    images = [{**MANY, "id": n, "file_name": f"{n}.tiff"} for n in range(9)]
    path = document([], images=images)
    (path.parent / "0.tiff").touch()
    with pytest.raises(SourceError, match=r"9 problems, listed above; convert pictures") as caught:
        read(path)
    assert caught.value.details[3].endswith("image 3.tiff: 3.tiff is no JPEG or PNG by its name")


def test_labels_of_labelme_that_are_no_classes(document) -> None:
    """labelme2coco puts the background in front, under the number 0."""
    categories = [
        {"id": 0, "name": "_background_", "supercategory": None},
        {"id": 1, "name": "ship", "supercategory": None},
    ]
    path = document(
        [annotation(1, [box(0, 0, 4, 4)]), annotation(0, [box(0, 0, 2, 4)])], categories=categories
    )
    table = read_coco_instances(path, path.parent).table("harbour")
    assert [(c.name, c.label_id) for c in table.classes] == [("ship", 1)]
    assert np.unique(ids(path)).tolist() == [0, 1000] and (ids(path) == 1000).sum() == 8


def test_things_beyond_64_are_refused(document) -> None:
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, 81)]
    path = document([], categories=categories)
    with pytest.raises(SourceError, match=r"80 things, and ids have room for 64; .*--classes FILE"):
        read_coco_instances(path, path.parent).table("harbour")


@pytest.mark.parametrize(
    ("size", "message"),
    [((12, 16), ""), ((6, 6), r"annotation of \(6, 6\), image of \(6, 8\)"), ((0, 0), "0 x 0")],
)
def test_sizes_of_the_annotation(document, size: tuple[int, int], message: str) -> None:
    """Twice as large it is shrunk; another shape is refused."""
    images = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
    path = document([annotation(18, [box(0, 0, 8, 12)])], images=images)
    if message:
        table = read_coco_instances(path, path.parent).table("harbour")
        (problem,) = read(path)[0].problems(table)
        assert problem.startswith(f"{path}: image a.png: ") and "\n" not in problem
    else:
        assert (ids(path)[:, :4] == 18000).all() and not ids(path)[:, 4:].any()


MANY = {"id": 1, "file_name": "a.png", "height": 6, "width": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [MANY, {**MANY, "id": 2}]}, "2 images of the file a.png"),
        ({"images": [MANY, MANY]}, "image 1 is listed twice"),
        ({"images": []}, "lists no images"),
        ({"images": [{**MANY, "file_name": "../a.png"}]}, "'../a.png' is not the name of a file"),
        ({"images": [{**MANY, "file_name": "/etc/a.png"}]}, "is not the name of a file in this"),
        ({"images": [{**MANY, "file_name": "C:\\a.png"}]}, "is not the name of a file in this"),
        ({"images": [{**MANY, "file_name": "x/.y/a.png"}]}, "is not the name of a file in this"),
        ({"images": [{**MANY, "file_name": "a\nb.png"}]}, "is not the name of a file in this"),
        ({"images": [{**MANY, "file_name": 7}]}, "image 1: file_name '7' is no text"),
        ({"images": [{**MANY, "height": "6"}]}, "image a.png: height '6', width 8"),
        ({"images": [{**MANY, "id": 1.5}]}, "image id '1.5' is neither a number nor a text"),
        ({"images": [{**MANY, "id": [1]}]}, "is neither a number nor a text"),
        ({"images": {"a": 1}}, "not a COCO JSON of objects"),
        ({"annotations": [annotation(18, [], image_id=9)]}, "annotation None is of image 9, which"),
        ({"annotations": [annotation(4, [])]}, "has the category 4, which is not listed"),
        ({"annotations": [annotation(18, [], image_id=[1])]}, "not a COCO JSON of objects"),
        ({"annotations": [annotation(18, 5)]}, "segmentation '5'"),
        ({"annotations": [3]}, "not a COCO JSON of objects"),
        ({"annotations": None}, "not a COCO JSON of objects"),
        ({"categories": [*CATEGORIES, CATEGORIES[0]]}, "category 1 is listed twice"),
        ({"categories": [{"id": 1, "name": 3}]}, "category 1: name '3'"),
        ({"categories": [{"id": 1}]}, "not a COCO JSON of objects"),
        ({"categories": [{"id": 1, "name": "a", "color": "red"}]}, "category a: color; use three"),
    ],
)  # fmt: skip
def test_documents_that_cannot_be(document, changes: dict, message: str) -> None:
    path = document([], **changes)
    with pytest.raises(SourceError) as caught:
        read_coco_instances(path, path.parent)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "", "3"])
def test_files_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "objects.json").write_text(text)
    with pytest.raises(SourceError, match=r"objects.json: not a COCO JSON of objects"):
        read_coco_instances(tmp_path / "objects.json", tmp_path)
    with pytest.raises(SourceError, match=r"no.json: missing"):
        read_coco_instances(tmp_path / "no.json", tmp_path)


def test_a_wrong_folder_of_images_is_noticed_at_once(document, tmp_path: Path) -> None:
    path = document([])
    with pytest.raises(
        SourceError, match=r"none of its 1 images is in .*elsewhere, where a.png sh"
    ):
        read_coco_instances(path, tmp_path / "elsewhere")


def runs(counts: object, size: object = (6, 8)) -> dict:
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[0, 0, float("nan"), 0, 1, 1]], "a polygon has points far outside of the image"),
        ([[0, 0, float("inf"), 0, 1, 1]], "points far outside of the image"),
        ([[0, 0, 10**30, 0, 1, 1]], "points far outside of the image"),
        ([[0, 0, 10**400, 0, 1, 1]], "points far outside of the image"),
        ([[0, 0, 2**20, 2**20] * 9], "an outline of more than 2097152 pixels"),
        ([[0, 0, 1, 0, 1, 1, 2]], "not an annotation that can be drawn"),
        ([[0, 0, "1", 0, 1, 1]], "not an annotation that can be drawn"),
        ([[0, 0, None, 0, 1, 1]], "not an annotation that can be drawn"),
        ([[0, 0, True, 0, 1, 1]], "not an annotation that can be drawn"),
        ([[0, 0, [1], 0, 1, 1]], "not an annotation that can be drawn"),
        (["abcdef", [0, 0, 1, 0, 1, 1]], "not an annotation that can be drawn"),
        (runs([48], (8, 6)), "run lengths of [8, 6], image of (6, 8) (H, W)"),
        (runs([40]), "run lengths of 40 pixels in all, image of (6, 8) (H, W)"),
        (runs([10**12]), "run lengths of 1000000000000 pixels in all"),
        (runs([50, -2]), "run lengths that are no numbers from 0 on"),
        (runs([1.5]), "run lengths that are no numbers from 0 on"),
        (runs(7), "not an annotation that can be drawn"),
        (runs("PPPPPPPPPPPPPPPPPPPP"), "compressed run lengths with 'P', which they cannot have"),
        (runs("1P"), "compressed run lengths that end within a number"),
        (runs("\x7f\x80"), "compressed run lengths with"),
        (runs("99999"), "pixels in all, image of (6, 8)"),
        ({"size": [6, 8]}, "not an annotation that can be drawn"),
    ],
)  # fmt: skip
def test_outlines_that_cannot_be(document, segmentation: object, message: str) -> None:
    path = document([annotation(18, segmentation)])
    table = read_coco_instances(path, path.parent).table("harbour")
    (source,) = read(path)
    (problem,) = source.problems(table)
    assert problem.startswith(f"{path}: image a.png: ") and message in problem
    assert "\n" not in problem


def test_a_picture_that_is_not_there_is_a_problem_of_its_own(document) -> None:
    images = [MANY, {**MANY, "id": 2, "file_name": "lost.png"}]
    path = document([], images=images)
    (path.parent / "lost.png").unlink()
    table = read_coco_instances(path, path.parent).table("harbour")
    kept, lost = read(path)
    assert kept.problems(table) == []
    assert lost.problems(table)[0].endswith("lost.png: missing")


def test_what_is_annotated_nowhere_may_be_a_class(document) -> None:
    path = document([annotation(18, [box(0, 0, 2, 2)])])
    found = read_coco_instances(path, path.parent)
    table = found.table("harbour", background="land")
    (source,) = found.splits(table, split="train", background="land")["train"]
    assert source.problems(table) == [] and source.skipped() == {}
    names = [table.classes[i].name for i in np.unique(table.train_id_of[source.instance_ids()])]
    assert names == ["ship", "land"] and (source.instance_ids() >= 1000).sum() == 4


def test_a_table_of_ones_own_decides(document) -> None:
    """Names are those of the file; ids, order and kind are the table's."""
    path = document([annotation(18, [box(0, 0, 2, 2)]), annotation(1, [box(4, 0, 2, 2)])])
    found = read_coco_instances(path, path.parent)
    entries = [ClassEntry("ship", 7), ClassEntry("water", void=True), ClassEntry("crane")]
    (source,) = found.splits(make_table("own", entries), split="train")["train"]
    assert np.unique(source.instance_ids()).tolist() == [0, 1, 7]
    with pytest.raises(
        SourceError, match=r"labels that the table own does not have: 'water' \(1 ob"
    ):
        found.splits(make_table("own", entries[:1]), split="train")
