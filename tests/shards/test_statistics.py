"""Dataset statistics: hand-worked tables, and a slow count from the pixels of a small tree."""

from __future__ import annotations

import json
import math
import statistics as stdlib
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.data import ShardReader
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import InstanceTable, find_instances
from d2_cityscapes.shards.statistics import ClassCount, Share, dataset_statistics, plot_statistics

PERSON, CAR, BICYCLE = 11, 13, 18  # train ids


def _table(*rows):
    """A table from (train id, width, height, mask area, crowd) rows."""
    classes, widths, heights, areas, crowd = zip(*rows, strict=True) if rows else [()] * 5
    zeros = [0] * len(rows)
    return InstanceTable(
        ids=np.array(classes, np.int32),
        classes=np.array(classes, np.uint8),
        boxes=np.array([zeros, zeros, widths, heights], np.int32).reshape(4, -1).T,
        areas=np.array(areas, np.int64),
        crowd=np.array(crowd, bool),
    )


@pytest.fixture(scope="module")
def hand_worked():
    """Three images: four objects and a group, nothing, one object and a group without objects."""
    tables = [
        _table(
            (PERSON, 32, 32, 500, False),
            (CAR, 33, 32, 1024, False),
            (CAR, 96, 96, 9216, False),
            (CAR, 100, 50, 1025, False),
            (BICYCLE, 900, 300, 90_000, True),
        ),
        _table(),
        _table((CAR, 97, 388, 9217, False), (PERSON, 5, 5, 9, True)),
    ]
    return dataset_statistics(iter(tables), CITYSCAPES)


def test_hand_worked_counts(hand_worked):
    assert hand_worked.images == 3
    assert hand_worked.images_without_objects == 1
    assert (hand_worked.objects, hand_worked.groups) == (5, 2)
    found = hand_worked.objects_per_image
    assert (found.mean, found.median, found.min, found.max) == (5 / 3, 1.0, 0.0, 4.0)
    assert (found.edges, found.counts) == ([0, 5], [3])


def test_areas_on_the_limits_are_the_smaller_size(hand_worked):
    box, mask = hand_worked.sizes["box"], hand_worked.sizes["mask"]
    assert box["small"] == Share(1, 20.0)  # 32 x 32
    assert box["medium"] == Share(3, 60.0)  # 33 x 32, 96 x 96, 100 x 50
    assert box["large"] == Share(1, 20.0)
    assert [mask[size].objects for size in ("small", "medium", "large")] == [2, 2, 1]


def test_classes_are_all_there_and_groups_apart(hand_worked):
    classes = hand_worked.classes
    assert list(classes) == [c.name for c in CITYSCAPES.things]
    assert classes["car"] == ClassCount(4, 80.0, images=2, groups=0)
    assert classes["person"] == ClassCount(1, 20.0, images=1, groups=1)
    assert classes["bicycle"] == ClassCount(0, 0.0, images=0, groups=1)
    assert classes["train"] == ClassCount(0, 0.0, images=0, groups=0)


def test_shapes_of_the_boxes(hand_worked):
    width, ratio = hand_worked.width, hand_worked.width_over_height
    assert (width.min, width.median, width.max, width.mean) == (32.0, 96.0, 100.0, 358 / 5)
    # bins of half an octave: 32 and 33 | none | 96, 97 and 100
    assert (width.edges, width.counts) == ([32, 45, 64, 91, 128], [2, 0, 0, 3])
    assert hand_worked.height.max == 388.0
    assert (ratio.min, ratio.median, ratio.max) == (0.25, 1.0, 2.0)
    # quarter octaves: 97 / 388 begins the bin at 1/4, the two squares and 33 / 32 the one at 1
    assert (ratio.edges[0], ratio.counts[0]) == (0.25, 1)
    assert (ratio.edges[-2], ratio.counts[-1]) == (2.0, 1)
    assert ratio.counts[ratio.edges.index(1.0)] == 3
    assert sum(ratio.counts) == 5


@pytest.mark.parametrize(
    "tables", [[], [_table(), _table()], [_table((CAR, 9, 9, 50, True))]], ids=len
)
def test_nothing_to_count(tables, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = dataset_statistics(tables, CITYSCAPES)
        plot_statistics(tmp_path / "plot.png", found, "nothing")
    assert (found.images, found.objects) == (len(tables), 0)
    assert found.images_without_objects == len(tables)
    assert found.width.mean is None and found.width.counts == []
    assert found.sizes["box"]["small"] == Share(0, None)
    assert len(found.classes) == 8 and found.classes["car"].images == 0
    assert found.objects_per_image.mean == (0.0 if tables else None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_json_holds_plain_numbers_and_says_what_they_mean(hand_worked):
    content = json.loads(json.dumps(hand_worked.to_dict(), allow_nan=False))
    assert content["width"]["unit"] == "px"
    assert "width / height" in content["conventions"]["width_over_height"]
    assert "half-open" in content["conventions"]["box"]
    assert content["conventions"]["sizes"]["small"] == "area <= 32^2"
    assert content["classes"]["person"] == {"objects": 1, "percent": 20.0, "images": 1, "groups": 1}


@given(st.lists(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), max_size=6)))
def test_every_object_is_in_one_bin_and_in_one_size(images):
    tables = [_table(*((CAR, w, h, w * h, False) for w, h in image)) for image in images]
    found = dataset_statistics(tables, CITYSCAPES)
    boxes = [box for image in images for box in image]
    assert found.sizes["box"] == found.sizes["mask"]
    assert sum(share.objects for share in found.sizes["box"].values()) == len(boxes)
    assert sum(found.objects_per_image.counts) == len(images)
    for values, distribution in (
        ([w for w, _ in boxes], found.width),
        ([h for _, h in boxes], found.height),
        ([w / h for w, h in boxes], found.width_over_height),
        ([len(image) for image in images], found.objects_per_image),
    ):
        for i, count in enumerate(distribution.counts):
            low, high = distribution.edges[i : i + 2]
            assert count == sum(low <= value < high for value in values)
        assert sum(distribution.counts) == len(values)
        assert not values or (distribution.counts[0] and distribution.counts[-1])


@pytest.mark.parametrize("split", ["train", "val"])
def test_equals_a_slow_count_of_the_pixels(cityscapes_tree, datasets_root, split):
    reader = ShardReader(datasets_root / "cityscapes_shards", split=split)
    found = dataset_statistics((reader.table(i) for i in range(len(reader))), CITYSCAPES)

    names = {c.label_id: c.name for c in CITYSCAPES.things}
    objects, groups, per_image, images_with = [], [], [], {name: set() for name in names.values()}
    for path in sorted((cityscapes_tree / "gtFine" / split).glob("*/*_instanceIds.png")):
        ids = np.asarray(Image.open(path))
        before = len(objects)
        for i in np.unique(ids).tolist():
            if i in names:
                groups.append(names[i])
            elif i // 1000 in names:
                rows, columns = np.nonzero(ids == i)
                sides = np.ptp(columns) + 1, np.ptp(rows) + 1
                objects.append((names[i // 1000], *map(int, sides), len(rows)))
                images_with[names[i // 1000]].add(path)
        per_image.append(len(objects) - before)

    assert found.images == len(per_image) == 8
    assert (found.objects, found.groups) == (len(objects), len(groups))
    assert found.objects > 20
    assert found.objects_per_image.mean == pytest.approx(stdlib.mean(per_image))
    assert found.objects_per_image.median == stdlib.median(per_image)
    for name, counts in found.classes.items():
        assert counts.objects == sum(o[0] == name for o in objects)
        assert counts.groups == groups.count(name)
        assert counts.images == len(images_with[name])
    _, widths, heights, areas = zip(*objects, strict=True)
    ratios = [w / h for w, h in zip(widths, heights, strict=True)]
    for values, distribution in (
        (widths, found.width),
        (heights, found.height),
        (ratios, found.width_over_height),
    ):
        assert distribution.mean == pytest.approx(stdlib.mean(values))
        assert distribution.median == pytest.approx(stdlib.median(values))
        assert (distribution.min, distribution.max) == (min(values), max(values))
    for kind, values in (
        ("box", [w * h for w, h in zip(widths, heights, strict=True)]),
        ("mask", areas),
    ):
        sizes = ["small" if a <= 1024 else "medium" if a <= 9216 else "large" for a in values]
        assert {s: share.objects for s, share in found.sizes[kind].items()} == {
            s: sizes.count(s) for s in ("small", "medium", "large")
        }


def test_areas_of_very_large_pictures_do_not_overflow():
    found = dataset_statistics([_table((CAR, 60_000, 60_000, 10, False))], CITYSCAPES)
    assert found.sizes["box"]["large"].objects == 1
    assert found.sizes["mask"]["small"].objects == 1
    assert math.prod((found.width.max, found.height.max)) == 60_000**2


def test_plot_is_a_picture(tmp_path):
    ids = np.full((40, 60), 7)
    ids[5:25, 5:15], ids[10:14, 30:50] = 24_000, 26_001
    found = dataset_statistics([find_instances(ids, CITYSCAPES)], CITYSCAPES)
    plot_statistics(tmp_path / "new" / "plot.png", found, "one picture")
    with Image.open(tmp_path / "new" / "plot.png") as picture:
        assert picture.size[0] >= 1000
        assert np.asarray(picture.convert("L")).std() > 10
