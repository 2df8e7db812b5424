"""Repeat factors by class and by small objects, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2_cityscapes.data.repeat_factors import (
    class_balanced_factors,
    factor_table,
    small_object_factors,
)
from d2_cityscapes.errors import D2CityscapesError


def image(*objects: tuple[int, float], groups=()) -> dict:
    annotations = [{"category_id": c, "area": area, "iscrowd": 0} for c, area in objects]
    return {"annotations": annotations + [
        {"category_id": c, "area": 10, "iscrowd": 1} for c in groups
    ]}  # fmt: skip


# class 0 in three images, class 1 in one, class 2 as a group alone, class 3 nowhere
DICTS = [
    image((0, 50), (0, 2000)),
    image((0, 50), (1, 50), (1, 50)),
    image((0, 2000), groups=(2,)),
    image(groups=(0, 1)),
]


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # half of an epoch of 4 for each class: 2 / 3 for an image with class 0, 2 for that with 1
        (1.0, [2 / 3, 2 / 3 + 2, 2 / 3, 0]),
        (0.5, [0.5 + 1 / 3, 0.5 + 4 / 3, 0.5 + 1 / 3, 0.5]),
        (0.0, [1, 1, 1, 1]),
    ],
)
def test_classes_share_an_epoch(share, expected):
    factors = class_balanced_factors(DICTS, share, 4)
    torch.testing.assert_close(factors, torch.tensor(expected, dtype=torch.float32))
    assert factors.sum() == pytest.approx(4)


def test_small_objects_share_an_epoch():
    """One in the first image, three in the second."""
    torch.testing.assert_close(
        small_object_factors(DICTS, 1.0, 4, 1024), torch.tensor([1.0, 3.0, 0.0, 0.0])
    )
    torch.testing.assert_close(
        small_object_factors(DICTS, 0.5, 4, 1024), torch.tensor([1.0, 2.0, 0.5, 0.5])
    )


def test_the_table_says_what_comes_how_often():
    factors = class_balanced_factors(DICTS, 1.0, 4)
    lines = factor_table(DICTS, factors, ["person", "bus", "car", "train"], 1024).splitlines()
    assert lines[0].split() == ["class", "images", "instances", "<", "1024", "px", "factor"]
    assert [line.split() for line in lines[1:5]] == [
        ["person", "3", "4", "2", "1.33"],
        ["bus", "1", "2", "2", "2.67"],
        ["car", "0", "0", "0", "-"],
        ["train", "0", "0", "0", "-"],
    ]
    assert lines[5] == "images come 0.00 to 2.67 times in an epoch of about 4"


def test_what_cannot_be_is_said():
    with pytest.raises(D2CityscapesError, match=r"BALANCE 1\.5: use a part of an epoch"):
        class_balanced_factors(DICTS, 1.5, 4)
    with pytest.raises(D2CityscapesError, match="none of 1 images has an instance to draw by"):
        class_balanced_factors(DICTS[3:], 0.5, 4)
    with pytest.raises(D2CityscapesError, match=r"an instance below 5 px \(DATALOADER.SMALL_AREA"):
        small_object_factors(DICTS, 0.5, 4, 5)


def test_any_images_make_an_epoch_of_the_same_length():
    rng = np.random.default_rng(0)
    dicts = [
        image(*((int(rng.integers(8)), float(rng.uniform(1, 3000))) for _ in range(number)))
        for number in rng.integers(0, 9, 50)
    ]
    for factors in (
        class_balanced_factors(dicts, 0.7, 8),
        small_object_factors(dicts, 0.7, 8, 1024),
    ):
        assert factors.sum() == pytest.approx(50, rel=1e-5) and factors.min() >= 0.3 - 1e-6
