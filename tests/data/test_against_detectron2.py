"""Our datasets and targets against Detectron2's own loaders of the PNG tree.

They agree on images, instances, group regions, masks and semantic labels. They differ in two ways:
Detectron2's boxes of PNGs end at the last pixel, ours behind it; and Detectron2 drops a segment
that is one pixel wide or high, ours stays.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from cityscapesscripts.helpers import labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from detectron2.data.datasets import cityscapes
from PIL import Image

from d2_cityscapes.data import CityscapesShardMapper, write_shards
from d2_cityscapes.data.register import load_shards
from d2_cityscapes.sources.cityscapes import find_sources

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SPLIT = "train"


@pytest.fixture(scope="module", autouse=True)
def official_labels():
    """Detectron2's main branch looks for the official label table at a place of its authors'."""
    place = "deeplearning.projects.cityscapesApi.cityscapesscripts.helpers.labels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, place, labels)
        yield


@pytest.fixture(scope="module")
def ours(datasets_root):
    return _by_image(load_shards(datasets_root / "cityscapes_shards", split=SPLIT))


@pytest.fixture(scope="module")
def theirs(cityscapes_tree, official_labels):
    return _load_instances(cityscapes_tree)


def _by_image(dicts):
    """Base name of the image -> dataset dict."""
    return {Path(d["file_name"]).name: d for d in dicts}


def _folders(tree):
    return str(tree / "leftImg8bit" / SPLIT), str(tree / "gtFine" / SPLIT)


def _load_instances(tree):
    """Detectron2's dicts, with run-length masks, of the instance-id PNGs."""
    loaded = cityscapes.load_cityscapes_instances(
        *_folders(tree), from_json=False, to_polygons=False
    )
    return _by_image(loaded)


def _rows(dataset_dict, *, inclusive):
    """Class, group flag, area and half-open box of every annotation, sorted."""
    rows = []
    for a in dataset_dict["annotations"]:
        area = pycocotools.mask.area(a["segmentation"]) if "segmentation" in a else a["area"]
        x0, y0, x1, y1 = map(int, a["bbox"])
        box = (x0, y0, x1 + inclusive, y1 + inclusive)
        rows.append((int(a["category_id"]), bool(a["iscrowd"]), int(area), box))
    return sorted(rows)


def test_same_images(ours, theirs):
    assert set(ours) == set(theirs) and len(ours) == 8
    for name, d in theirs.items():
        assert (ours[name]["height"], ours[name]["width"]) == (d["height"], d["width"])


def test_same_instances_and_groups(ours, theirs):
    total = 0
    for name, d in theirs.items():
        rows = _rows(ours[name], inclusive=False)
        assert rows == _rows(d, inclusive=True)
        total += len(rows)
    assert total > 50
    assert any(a["iscrowd"] for d in theirs.values() for a in d["annotations"])


def test_targets_of_the_mapper_are_the_masks(ours, theirs):
    mapper = CityscapesShardMapper(True, augmentations=[])
    for name, d in theirs.items():
        target = mapper(ours[name])["instances"]
        single = [a for a in d["annotations"] if not a["iscrowd"]]
        masks = target.gt_masks.tensor
        assert len(target) == len(masks) == len(single)
        assert target.gt_classes.tolist() == [a["category_id"] for a in single]
        for mask, annotation in zip(masks, single, strict=True):
            expected = pycocotools.mask.decode(annotation["segmentation"])
            np.testing.assert_array_equal(mask.numpy(), expected.astype(bool))


def test_odd_segments(cityscapes_tree, tmp_path):
    """A picture of groups, one-pixel things, and classes that are not evaluated."""
    tree = tmp_path / "tree"
    shutil.copytree(cityscapes_tree, tree)
    changed = sorted((tree / "gtFine" / SPLIT).glob("*/*_instanceIds.png"))[0]
    ids = np.full((64, 128), 7, dtype=np.uint16)
    ids[2:20, 3:40] = 26  # a group of cars, cut in two by one of them
    ids[2:20, 20:25] = 26_001
    ids[30:40, 3:9] = 24  # a group of persons
    ids[50:60, 60:90] = 30_000  # a trailer
    ids[61, 1:9] = 29  # a group of caravans
    ids[30:40, 100] = 24_001  # one pixel wide
    ids[45, 100:110] = 33_002  # one pixel high
    ids[63, 127] = 25_000  # one pixel
    ids[40:44, 50:52] = 17  # pole, stuff
    Image.fromarray(ids).save(changed)
    write_shards(find_sources(tree, SPLIT), tmp_path / "shards", split=SPLIT, partitions=1)

    name = changed.name.replace("gtFine_instanceIds", "leftImg8bit")
    ours = _by_image(load_shards(tmp_path / "shards", split=SPLIT))[name]
    rows = _rows(ours, inclusive=False)
    thin = [
        (0, False, 10, (100, 30, 101, 40)),
        (1, False, 1, (127, 63, 128, 64)),
        (7, False, 10, (100, 45, 110, 46)),
    ]
    assert [row for row in rows if row in thin] == thin
    assert [row for row in rows if row not in thin] == [
        (0, True, 60, (3, 30, 9, 40)),
        (2, False, 90, (20, 2, 25, 20)),
        (2, True, 576, (3, 2, 40, 20)),
    ]
    theirs = _rows(_load_instances(tree)[name], inclusive=True)
    assert theirs == [row for row in rows if row not in thin]
    # ours in training: every instance, no group
    target = CityscapesShardMapper(True, augmentations=[])(ours)["instances"]
    assert sorted(target.gt_classes.tolist()) == [0, 1, 2, 7]
    assert sorted(int(mask.sum()) for mask in target.gt_masks.tensor) == [1, 10, 10, 90]


def test_same_semantic_labels(cityscapes_tree, ours, tmp_path):
    """The official tool draws the train ids that Detectron2's loader asks for."""
    shutil.copytree(cityscapes_tree, tmp_path / "tree")
    for polygons in (tmp_path / "tree" / "gtFine" / SPLIT).glob("*/*_polygons.json"):
        drawn = polygons.with_name(polygons.name.replace("polygons.json", "labelTrainIds.png"))
        json2labelImg(str(polygons), str(drawn), "trainIds")
    mapper = CityscapesShardMapper(True, augmentations=[], instances=False, sem_seg=True)
    theirs = _by_image(cityscapes.load_cityscapes_semantic(*_folders(tmp_path / "tree")))
    assert set(theirs) == set(ours)
    for name, d in theirs.items():
        assert (ours[name]["height"], ours[name]["width"]) == (d["height"], d["width"])
        with Image.open(d["sem_seg_file_name"]) as picture:
            expected = np.asarray(picture)
        np.testing.assert_array_equal(mapper(ours[name])["sem_seg"].numpy(), expected)
        assert 255 in expected and 0 in expected
