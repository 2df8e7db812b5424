"""Mapillary Vistas: its tree, and the way from there to a score, with ids up to the 16th bit."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from vistas_tree import NUMBER, SIZES, make_vistas_tree, segments_of

from d2_cityscapes import get_cfg
from d2_cityscapes.data import CityscapesShardMapper, ShardError, ShardReader, write_shards
from d2_cityscapes.evaluation import PanopticQuality
from d2_cityscapes.evaluation.panoptic.instance_ids import ids_of_panoptic
from d2_cityscapes.evaluation.results import read_results
from d2_cityscapes.labels import VISTAS
from d2_cityscapes.modeling import fuse_panoptic
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.vistas import find_splits

CANVAS = (48, 64)


def ids_of(size: tuple[int, int]) -> np.ndarray:
    """The instance ids of `segments_of`, by hand."""
    segments, infos = segments_of(size, "training")
    values = [28, 14, 14, 1000, 63000, 63001, 56, 65]
    ids = np.zeros(size, dtype=np.int64)
    for info, value in zip(infos, values, strict=True):
        ids[segments == info["id"]] = value
    return ids


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_vistas_tree(tmp_path_factory.mktemp("vistas"))


def test_sources_in_both_layouts(tree):
    splits = find_splits(tree, ["train", "val"], canvas=CANVAS)
    for split, sources in splits.items():
        assert [s.file_name for s in sources] == [f"{name}.jpg" for name in SIZES]
        assert [s.size for s in sources] == [(36, 48), (48, 36), (48, 64)]
        assert [p for s in sources for p in s.problems(VISTAS)] == []
        # numbers go by ascending segment id: in val that of the first of two is the larger one
        lookup = np.arange(1 << 16)
        if split == "val":
            lookup[[63000, 63001]] = 63001, 63000
        for source, size in zip(sources, SIZES.values(), strict=True):
            np.testing.assert_array_equal(source.read_annotation(), lookup[ids_of(size)])
        smaller = lookup[ids_of((96, 128))[1::2, 1::2]]
        np.testing.assert_array_equal(sources[2].instance_ids(), smaller)


@pytest.fixture
def copy(tree, tmp_path):
    shutil.copytree(tree / "validation", tmp_path / "validation")
    return tmp_path


def test_incomplete_trees_are_named(copy):
    with pytest.raises(SourceError, match=r"training: no images/\*.jpg; expected the Mapillary"):
        find_splits(copy, ["train"])
    with pytest.raises(SourceError, match="split 'test'; Mapillary Vistas has train, val"):
        find_splits(copy, ["test"])
    panoptic = copy / "validation" / "panoptic"
    (panoptic / "a_-Z.png").unlink()
    (copy / "validation" / "images" / "b.jpg").unlink()
    Image.new("RGB", (9, 9)).save(copy / "validation" / "images" / "new.jpg")
    sources = find_splits(copy, ["val"])["val"]
    problems = [p.rpartition("/")[2] for s in sources for p in s.problems(VISTAS)]
    assert problems == ["a_-Z.png: missing", "b.jpg: missing", "new.png: missing"]
    (panoptic / "panoptic_2018.json").unlink()
    with pytest.raises(SourceError, match=r"no panoptic/panoptic_2018\.json"):
        find_splits(copy, ["val"])


def _change(copy, change):
    path = copy / "validation" / "panoptic" / "panoptic_2018.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _too_many(document):
    infos = document["annotations"][0]["segments_info"]
    infos += [{"id": 200_000 + i, "category_id": NUMBER["Car"]} for i in range(1001)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_too_many, r"image a_-Z: more than 1000 segments \(Car\)"),
        (lambda d: d["annotations"][0]["segments_info"][0].update(category_id=66), "category 66"),
        (lambda d: d["categories"][0].update(isthing=0), "isthing of Bird is 0, but it is a thing"),
        (lambda d: d.pop("annotations"), "not COCO panoptic"),
    ],
)
def test_wrong_lists_are_refused(copy, change, message):
    _change(copy, change)
    with pytest.raises(SourceError, match=message):
        find_splits(copy, ["val"])


def test_unlisted_segments_are_a_problem(copy):
    _change(copy, lambda d: d["annotations"][0]["segments_info"].pop())
    (problem,) = find_splits(copy, ["val"])["val"][0].problems(VISTAS)
    assert "a_-Z.png: segment 6001 which the JSON does not list" in problem


@pytest.fixture(scope="module")
def shards(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "vistas_shards"
    for split, sources in find_splits(tree, ["train", "val"], canvas=CANVAS).items():
        write_shards(sources, folder, split=split, table=VISTAS)
    return folder


def test_records_keep_ids_up_to_the_last_thing_class(shards):
    reader = ShardReader(shards, split="train", table=VISTAS)
    np.testing.assert_array_equal(reader[0].instance_ids, ids_of((36, 48)))
    assert reader[0].ids.tolist() == [56, 1000, 63000, 63001]
    assert reader[0].classes.tolist() == [55, 0, 62, 62]
    assert reader[0].crowd.tolist() == [True, False, False, False]
    with pytest.raises(ShardError, match=r"made with another label table \(vistas\) than citys"):
        ShardReader(shards, split="val").table(0)


def test_ids_beyond_16_bits_are_refused(array_source, tmp_path):
    ids = np.full((4, 6), 65_536 + 14)  # would come back as road
    source = array_source("a.jpg", np.zeros((4, 6, 3), np.uint8), ids)
    with pytest.raises(SourceError, match="ids 65550 are not in the vistas label table"):
        write_shards([source], tmp_path, split="train", table=VISTAS)


def test_datasets_and_mapper(shards, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(shards.parent))
    dicts = DatasetCatalog.get("vistas_shards_train")
    assert [d["image_id"] for d in dicts] == list(SIZES)
    assert [(d["height"], d["width"]) for d in dicts] == [(36, 48), (48, 36), (48, 64)]
    meta = MetadataCatalog.get("vistas_shards_train")
    assert len(meta.thing_classes) == 37 and len(meta.stuff_classes) == 65
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("vistas_shards_train",)
    cfg.INPUT.MIN_SIZE_TRAIN = (48,)
    mapper = CityscapesShardMapper(cfg, True)
    assert mapper.table is VISTAS
    mapper.sem_seg = mapper.panoptic = mapper.masks = True
    for d in dicts:
        out = mapper(d)
        assert min(out["image"].shape[1:]) == 48
        target = out["instances"]
        names = [meta.thing_classes[i] for i in target.gt_classes]
        assert names == ["Bird", "Wheeled Slow", "Wheeled Slow"]
        assert target.gt_masks.get_bounding_boxes().tensor.equal(target.gt_boxes.tensor)
        assert set(out["sem_seg"].unique().tolist()) == {0, 13, 27, 55, 62, 64, 255}
        panoptic, segments = out["panoptic_seg"]
        assert sorted(s["category_id"] for s in segments) == [0, 13, 27, 55, 62, 62, 64]
        ids = ids_of_panoptic(panoptic.numpy(), segments, VISTAS)
        assert set(VISTAS.train_id_of[ids].ravel()) == {0, 13, 27, 55, 62, 64, 255}


def test_fusion_of_what_the_truth_says_is_the_truth(shards):
    """Scores of 65 classes and a mask for each instance; the crowd is no prediction."""
    record = ShardReader(shards, split="val", table=VISTAS)[2]
    ids = record.instance_ids
    train_ids = torch.from_numpy(VISTAS.train_id_of[ids.numpy()].astype(np.int64))
    scores = torch.nn.functional.one_hot(train_ids.clamp(max=65), 66)[..., :65]
    instances = SimpleNamespace(
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.from_numpy(VISTAS.thing_id_of_train[[62, 0, 62]]),
        pred_masks=torch.stack([ids == i for i in (63001, 1000, 63000)]),
    )
    panoptic, segments = fuse_panoptic(
        scores.permute(2, 0, 1).float(), instances, stuff_area_limit=1, table=VISTAS
    )
    predicted = ids_of_panoptic(panoptic.numpy(), segments, VISTAS)
    # where nothing is void, and so all scores 0, the first class wins: a thing, which is left out
    expected = np.where(ids == 56, 0, ids)
    swapped = np.select([expected == 63000, expected == 63001], [63001, 63000], expected)
    np.testing.assert_array_equal(predicted, swapped)

    quality = PanopticQuality(VISTAS)
    quality.update(predicted, ids)
    result = quality.compute()
    assert result["PQ"] == result["PQ_th"] == result["PQ_st"] == 100
    assert result["per_class"]["Wheeled Slow"]["tp"] == 2
    assert len(result["per_class"]) == 65


def test_commands(call, tree, tmp_path):
    """Where nothing was shrunk, shards and the official files are one truth."""
    pack = ["datasets/prepare_shards.py", "--vistas", tree, "--output", tmp_path / "shards"]
    code, out, err = call(*pack, "--size", 96, 128, "--verify", "--image-codec", "zstd")
    assert code == 0, err
    assert out.startswith("train: 3 images in 3 shards") and "val: 3 images in 3 shards" in out

    maps = tmp_path / "maps"
    maps.mkdir()
    for name, size in SIZES.items():
        moved = np.where(ids_of(size) == 56, 0, np.roll(ids_of(size), 1, axis=1))
        Image.fromarray(moved.astype(np.uint16)).save(maps / f"{name}.png")
    rows = []
    for truth in (tmp_path / "shards", tree / "validation" / "panoptic"):
        split = ["--split", "val"] if truth.name == "shards" else []
        files = ["--truth", truth, *split, "--prediction", maps, "--output", tmp_path / "r.json"]
        code, _, err = call("tools/evaluate_panoptic.py", "--labels", "vistas", *files)
        assert code == 0, err
        rows.append({r.metric: r.value for r in read_results(tmp_path / "r.json")[0]})
    assert 30 < rows[0]["PQ"] < 100 and rows[0]["PQ-Bird"] is not None
    assert rows[0] == rows[1]
