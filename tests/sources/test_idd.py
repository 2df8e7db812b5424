"""The Indian Driving Dataset: its tree, polygons as ids, and the way from there to a score."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from d2_cityscapes import get_cfg
from d2_cityscapes.data import CityscapesShardMapper, ShardError, ShardReader, write_shards
from d2_cityscapes.evaluation import PanopticQuality
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.labels import IDD
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.idd import draw_polygons, find_splits

ROAD, PARKING, PERSON, CAR, SKY = 1, 2, 5, 10, 26  # label ids: level3Id + 1


def box(label: str, left: int, top: int, right: int, bottom: int, **more) -> dict:
    """A rectangle, its last row and column included, as Pillow draws polygons."""
    corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "polygon": corners, **more}


SCENE = [
    box("sky", 0, 0, 11, 2),
    box("road", 0, 3, 11, 7),
    box("car", 1, 3, 4, 5),
    box("car", 4, 4, 6, 6),
    box("cargroup", 8, 3, 9, 4),
    box("animal", 8, 6, 8, 7),
    box("person", 9, 6, 9, 7, deleted=0),
    box("license plate", 2, 5, 2, 5),
    box("car", 0, 0, 11, 7, deleted=1),
]
SCENE_IDS = """
    26 26    26    26    26    26    26   26 26   26   26 26
    26 26    26    26    26    26    26   26 26   26   26 26
    26 26    26    26    26    26    26   26 26   26   26 26
     1 10000 10000 10000 10000 1     1    1  10   10   1  1
     1 10000 10000 10000 10001 10001 10001 1 10   10   1  1
     1 10000 0     10000 10001 10001 10001 1 1    1    1  1
     1 1     1     1     10001 10001 10001 1 5000 5001 1  1
     1 1     1     1     1     1     1    1  5000 5001 1  1
"""


def test_polygons_are_drawn_in_order_as_instances_of_level_3():
    """An animal is the class of persons, a deleted car nothing, a number plate void."""
    expected = np.array(SCENE_IDS.split(), dtype=int).reshape(8, 12)
    np.testing.assert_array_equal(draw_polygons(SCENE, (8, 12)), expected)


def test_what_the_official_tool_passes_over_is_no_instance():
    """A point, nothing, and labels that it does not know; the car behind them is the first."""
    objects = [
        {"label": "car", "polygon": [[5, 5]]},
        {"label": "car", "polygon": []},
        box("cow", 0, 0, 11, 7),
        box("cowgroup", 0, 0, 11, 7),
        box("car", 1, 1, 2, 2),
    ]
    ids = draw_polygons(objects, (8, 12))
    assert np.unique(ids).tolist() == [0, CAR * 1000]
    assert np.array_equal(ids > 0, draw_polygons([box("road", 1, 1, 2, 2)], (8, 12)) > 0)


def test_polygons_cover_what_the_official_cityscapes_tool_draws():
    """Same rules, other ids: a referee for labels that both datasets have."""
    rng = np.random.default_rng(5)
    names = ["road", "car", "person", "cargroup", "bicycle", "traffic sign", "sky"]
    objects = [
        {"label": names[rng.integers(len(names))], "polygon": rng.integers(-5, 70, (5, 2)).tolist()}
        for _ in range(60)
    ]
    annotation = Annotation()
    annotation.fromJsonText(json.dumps({"imgHeight": 48, "imgWidth": 64, "objects": objects}))
    official = np.array(createInstanceImage(annotation, "ids"))
    lookup = np.zeros(34_000, dtype=int)
    for c in IDD.classes:
        if c.name in name2label:
            theirs = name2label[c.name].id
            lookup[theirs] = c.label_id
            lookup[theirs * 1000 :][:1000] = c.label_id * 1000 + np.arange(1000)
    np.testing.assert_array_equal(draw_polygons(objects, (48, 64)), lookup[official])


def far(x: float) -> dict:
    """A polygon with a point at (x, 0)."""
    return {"label": "car", "polygon": [[0, 0], [x, 0], [1, 1]]}


def scene(size: tuple[int, int]) -> list[dict]:
    """Road below a sky, two cars and a rider, for an (H, W) image."""
    height, width = size
    return [
        box("sky", 0, 0, width - 1, height // 2),
        box("road", 0, height // 2, width - 1, height - 1),
        box("car", 2, height // 2 - 4, 12, height // 2 + 4),
        box("car", 14, height // 2 - 4, 24, height // 2 + 4),
        box("rider", 30, height // 2 - 8, 34, height // 2 + 4),
        box("ego vehicle", 0, height - 3, width - 1, height - 1),
    ]


SIZES = {"9": (36, 64), "10": (48, 64), "201": (72, 128)}  # drive -> (H, W)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Names repeat between drives, sizes differ, the last drive has JPEGs; (54, 96) is the canvas
    of these tests, so that it is shrunk as well."""
    root = tmp_path_factory.mktemp("idd")
    rng = np.random.default_rng(2)
    for split, numbers in (("train", (1, 2)), ("val", (3,))):
        for drive, size in SIZES.items():
            images, polygons = (root / kind / split / drive for kind in ("leftImg8bit", "gtFine"))
            images.mkdir(parents=True)
            polygons.mkdir(parents=True)
            ending = "jpg" if drive == "201" else "png"
            for number in numbers:
                pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(images / f"{number:06d}_leftImg8bit.{ending}")
                document = {"imgHeight": size[0], "imgWidth": size[1], "objects": scene(size)}
                path = polygons / f"{number:06d}_gtFine_polygons.json"
                path.write_text(json.dumps(document))
    return root


CANVAS = (54, 96)


def test_sources_are_sorted_by_drive_and_have_names_of_their_own(tree):
    sources = find_splits(tree, ["train", "val"], canvas=CANVAS)
    assert [s.file_name for s in sources["val"]] == [
        "9_000003_leftImg8bit.png",
        "10_000003_leftImg8bit.png",
        "201_000003_leftImg8bit.jpg",
    ]
    assert [s.size for s in sources["val"]] == [(36, 64), (48, 64), (54, 96)]
    assert len(sources["train"]) == 6
    assert [p for s in sources["train"] for p in s.problems(IDD)] == []
    assert len(find_splits(tree, ["train"], limit=4)["train"]) == 4


def test_polygons_of_a_larger_picture_are_scaled(tree, tmp_path):
    """Annotated at twice the size of the published image."""
    source = find_splits(tree, ["val"])["val"][0]
    twice = tmp_path / "twice.json"
    document = {"imgHeight": 72, "imgWidth": 128, "objects": [box("car", 64, 0, 127, 71)]}
    twice.write_text(json.dumps(document))
    ids = type(source)(source.image_path, twice, "a", CANVAS).instance_ids()
    assert ids.shape == (36, 64)
    assert (ids[:, :32] == 0).all() and (ids[:, 32:] == CAR * 1000).all()


def _write(path, **changes):
    path.write_text(json.dumps({"imgHeight": 36, "imgWidth": 64, "objects": []} | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), ": missing"),
        (lambda path: path.write_text("{"), "not a file of polygons"),
        (lambda path: path.write_text("[]"), "not a file of polygons"),
        (lambda path: _write(path, objects=[{"label": "car"}]), "not a file of polygons"),
        (lambda path: path.write_text("[" * 100_000), "not a file of polygons"),
        (lambda path: _write(path, objects=[{"label": 3, "polygon": []}] * 2 + [3]), "not a file"),
        (lambda path: _write(path, objects=[far(float("nan"))]), "points far outside of the image"),
        (lambda path: _write(path, objects=[far(float("inf"))]), "points far outside of the image"),
        (lambda path: _write(path, objects=[far(10**30)]), "points far outside of the image"),
        (lambda path: _write(path, imgHeight=0, imgWidth=0), "says that it is 0 x 0 (H x W)"),
        (lambda path: _write(path, imgHeight=-36, imgWidth=-64), "says that it is -36 x -64"),
        (lambda path: _write(path, imgHeight=10**6, imgWidth=10**6), "says that it is 1000000 x"),
        (lambda path: _write(path, imgHeight=9000, imgWidth=16000), "of (9000, 16000), image of ("),
        (lambda path: _write(path, imgHeight=36.0), "not a file of polygons"),
        (
            lambda path: _write(path, objects=[box("car", 0, 0, 1, 1)] * 1001),
            "more than 1000 instances of car",
        ),
        (lambda path: _write(path, imgWidth=36), "annotation of (36, 36), image of (36, 64)"),
    ],
)
def test_problems_are_named(tree, tmp_path, damage, message):
    source = find_splits(tree, ["val"])["val"][0]
    path = tmp_path / "polygons.json"
    path.write_bytes(source.annotation_path.read_bytes())
    damage(path)
    (problem,) = type(source)(source.image_path, path, "a", CANVAS).problems(IDD)
    assert problem.startswith(f"{path}: ") and message in problem


def test_incomplete_trees(tree, tmp_path):
    with pytest.raises(SourceError, match=r"no \*/\*_leftImg8bit.png; expected the IDD root"):
        find_splits(tmp_path, ["train"])
    with pytest.raises(SourceError, match="split 'test'; IDD has train, val"):
        find_splits(tree, ["test"])
    with pytest.raises(SourceError, match="limit 0; give 1 or more"):
        find_splits(tree, ["train"], limit=0)
    for kind, name in (("leftImg8bit", "1_leftImg8bit.png"), ("gtFine", "2_gtFine_polygons.json")):
        folder = tmp_path / kind / "train" / "0"
        folder.mkdir(parents=True)
        (folder / name).touch()
    sources = find_splits(tmp_path, ["train"])["train"]
    assert [s.file_name for s in sources] == ["0_1_leftImg8bit.png", "0_2_leftImg8bit.png"]
    assert sources[0].problems(IDD)[1].endswith("gtFine/train/0/1_gtFine_polygons.json: missing")
    assert sources[1].problems(IDD)[0].endswith("leftImg8bit/train/0/2_leftImg8bit.png: missing")


@pytest.fixture(scope="module")
def shards(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "idd_shards"
    for split, sources in find_splits(tree, ["train", "val"], canvas=CANVAS).items():
        write_shards(sources, folder, split=split, partitions=2, table=IDD)
    return folder


def test_another_table_is_refused(shards, tmp_path, array_source):
    with pytest.raises(ShardError, match=r"made with another label table \(idd\) than cityscapes"):
        ShardReader(shards, split="val").table(0)
    source = array_source("a.png", np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 7))
    with pytest.raises(ShardError, match="holds shards of the label table idd, not cityscapes"):
        write_shards([source], shards, split="train_extra")


def test_datasets_and_mapper(shards, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shards.parent))
    dicts = DatasetCatalog.get("idd_shards_val")
    assert [d["image_id"] for d in dicts] == ["9_000003", "10_000003", "201_000003"]
    assert [(d["height"], d["width"]) for d in dicts] == [(36, 64), (48, 64), (54, 96)]
    meta = MetadataCatalog.get("idd_shards_val")
    assert meta.thing_classes == [c.name for c in IDD.things] and len(meta.stuff_classes) == 26
    names = [[meta.thing_classes[a["category_id"]] for a in d["annotations"]] for d in dicts]
    assert names == [["rider", "car", "car"]] * 3

    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("idd_shards_val",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (72,), 200
    mapper = CityscapesShardMapper(cfg, True)
    assert mapper.table is IDD
    mapper.sem_seg = mapper.panoptic = True
    for d in dicts:
        out = mapper(d)
        assert out["image"].shape[1] == 72, "the padding of the canvas is not seen"
        found = [meta.thing_classes[i] for i in out["instances"].gt_classes]
        assert sorted(found) == ["car", "car", "rider"]
        assert set(out["sem_seg"].unique().tolist()) == {0, 5, 9, 25, 255}  # level3Ids
        _, segments = out["panoptic_seg"]
        assert sorted(s["category_id"] for s in segments) == [0, 5, 9, 9, 25]
    cfg.DATASETS.TRAIN = ("idd_shards_val", "cityscapes_shards_val")
    with pytest.raises(Exception, match=r"idd_shards_val \(idd\), .* have other classes"):
        CityscapesShardMapper(cfg, True)


def test_panoptic_quality_of_shards(shards):
    quality = PanopticQuality(IDD)
    for record in ShardReader(shards, split="val", table=IDD):
        moved = torch.where(record.instance_ids == CAR * 1000 + 1, ROAD, record.instance_ids)
        quality.update(moved, record.instance_ids)
    result = quality.compute()
    assert list(result["per_class"]) == [c.name for c in IDD.classes]
    car = result["per_class"]["car"]
    assert (car["tp"], car["fp"], car["fn"], car["iou"]) == (3, 0, 3, 3.0)
    assert result["per_class"]["rider"]["PQ"] == 100
    assert result["per_class"]["curb"]["PQ"] is None


def test_commands(call, tree, tmp_path):
    pack = ["datasets/prepare_shards.py", "--idd", tree, "--output", tmp_path / "shards"]
    sizes = ["--size", *CANVAS, "--partitions", "train=3", "--workers", 1]
    code, out, err = call(*pack, *sizes, "--verify")
    assert code == 0, err
    assert out.splitlines()[0].startswith("train: 6 images in 3 shards")
    assert out.splitlines()[1].startswith("val: 3 images in 3 shards")
    code, _, err = call(*pack, "--size", 100, 100)
    assert code == 1 and "holds shards made from other images or settings" in err
    code, _, err = call(*pack, "--cities", "delhi")
    assert code == 2 and "--cities is for --cityscapes" in err

    maps = tmp_path / "maps"
    maps.mkdir()
    for record in ShardReader(tmp_path / "shards", split="val", table=IDD):
        name = record.file_name.removesuffix(record.file_name[-4:])
        Image.fromarray(record.instance_ids.numpy().astype(np.uint16)).save(maps / f"{name}.png")
    score = ["tools/evaluate_panoptic.py", "--truth", tmp_path / "shards", "--split", "val"]
    score += ["--prediction", maps, "--output", tmp_path / "results.json", "--workers", 1]
    code, out, err = call(*score, "--labels", "idd")
    assert code == 0, err
    assert {r.metric: r.value for r in read_results(tmp_path / "results.json")[0]}["PQ"] == 100
    code, out, err = call(*score)
    assert code == 0, "the classes are those of the shards, where nobody says otherwise"
    code, out, err = call(*score, "--labels", "cityscapes")
    assert code == 1 and "made with another label table (idd) than cityscapes" in err


def test_maps_of_the_official_tool_are_not_mistaken_for_label_ids(call, tmp_path):
    """In them 0 is road and 255 void."""
    folder = tmp_path / "gtFine" / "val" / "0"
    folder.mkdir(parents=True)
    Image.new("L", (4, 4), 0).save(folder / "1_gtFine_instancelevel3Ids.png")
    options = ["--truth", tmp_path, "--prediction", tmp_path, "--output", tmp_path / "results.json"]
    code, _, err = call("tools/evaluate_panoptic.py", "--labels", "idd", *options)
    assert code == 1 and "holds level3Ids, which are not label ids" in err


def test_what_is_passed_over_is_counted_by_the_command(call, tree, tmp_path, caplog):
    copied = tmp_path / "idd"
    shutil.copytree(tree, copied)
    for path in sorted(copied.rglob("*_polygons.json"))[:2]:
        document = json.loads(path.read_text())
        document["objects"] += [box("cow", 0, 0, 2, 2), {"label": "car", "polygon": [[1, 1]]}]
        path.write_text(json.dumps(document))
    pack = ["datasets/prepare_shards.py", "--idd", copied, "--output", tmp_path / "shards"]
    code, out, err = call(*pack, "--splits", "train", "--workers", 1, "--verify")
    assert code == 0 and out.startswith("train: 6 images"), err
    expected = "2 objects of fewer than 2 points, 2 objects of the unknown label 'cow'"
    assert caplog.messages == [f"passed over: {expected}"]


def test_a_picture_of_a_kind_that_is_not_read_is_named(tree, tmp_path):
    copied = tmp_path / "idd"
    shutil.copytree(tree, copied)
    path = find_splits(copied, ["val"])["val"][0].image_path
    path.rename(path.with_suffix(".webp"))
    (problem,) = find_splits(copied, ["val"])["val"][0].problems(IDD)
    assert problem == f"{path}: missing, but {path.stem}.webp is there; convert it to PNG"


def test_one_image_in_two_formats_is_refused(tree, tmp_path):
    copied = tmp_path / "idd"
    shutil.copytree(tree, copied)
    path = find_splits(copied, ["val"])["val"][0].image_path
    shutil.copy(path, path.with_suffix(".JPG"))
    with pytest.raises(SourceError, match=r"the same image as .*remove one of the two"):
        find_splits(copied, ["val"])
