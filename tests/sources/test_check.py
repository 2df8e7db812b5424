"""Checking sources: every problem, named, before anything is packed."""

from __future__ import annotations

import os
import shutil
from collections import Counter

import numpy as np
import pytest

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.sources.check import check_ids, check_sources, contents
from d2_cityscapes.sources.errors import SourceError


@pytest.fixture
def make(array_source):
    def source(name: str, size: tuple[int, int] = (4, 6), value: int = 7):
        return array_source(name, np.zeros((*size, 3), np.uint8), np.full(size, value))

    return source


def _check(splits, packed=()):
    packed_sizes = {split: packed for split in splits}
    return check_sources(splits, None, table=CITYSCAPES, packed_sizes=packed_sizes)


def test_sound_sources_give_their_size(make):
    splits = {"train": [make("a"), make("b")], "val": [make("c", (3, 5))], "test": []}
    assert _check(splits) == {"train": (4, 6), "val": (3, 5)}


def test_all_splits_are_listed_in_one_line(make, array_source):
    torn = array_source("torn", np.zeros((4, 6, 3), np.uint8), np.full((4, 5), 7))
    splits = {
        "train": [make("a"), make("b", value=34_001), torn, make("d")],
        "val": [make("e"), make("f"), make("g", (6, 4))],
    }
    with pytest.raises(SourceError) as caught:
        _check(splits)
    text = str(caught.value)
    assert text.startswith("3 problems: ") and "\n" not in text and not caught.value.details
    assert "b: ids 34001 are not in the cityscapes label table" in text
    assert "torn: id map of (4, 5), image of (4, 6)" in text
    assert "g: (6, 4) (H, W), other images of val are (4, 6)" in text


def test_images_that_are_packed_already_count_for_the_size(make):
    with pytest.raises(SourceError, match=r"a: \(4, 6\).*other images of train are \(8, 8\)"):
        _check({"train": [make("a")]}, packed=[(8, 8), (8, 8)])


def test_many_problems_stand_above_the_line():
    few = SourceError.of_many([str(i) for i in range(8)], "mend them")
    assert str(few) == "8 problems: 0; 1; 2; 3; 4; 5; 6; 7; mend them" and few.details == ()
    many = SourceError.of_many([str(i) for i in range(9)], "mend them")
    assert str(many) == "9 problems, listed above; mend them"
    assert many.details == tuple("012345678")
    assert str(SourceError.of_many(["x"], "mend it")) == "1 problem: x; mend it"


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (np.array([[7, 26000]]), []),
        (np.array([[7.0, 1.0]]), ["id map of float64, expected integers"]),
        (np.array([[-1, 7]]), ["ids -1 are not in the cityscapes label table"]),
        (
            np.array([[50, 51, 52, 53, 54, 55]]),
            ["ids 50, 51, 52, 53, 54, ... are not in the cityscapes label table"],
        ),
    ],
)
def test_id_maps(ids, problem):
    assert check_ids(ids, ids.shape, CITYSCAPES) == problem


def test_contents_change_with_every_byte_of_an_annotation_but_not_with_its_date(tmp_path):
    picture, annotation = tmp_path / "a.jpg", tmp_path / "a.png"
    picture.write_bytes(bytes(5000)), annotation.write_bytes(bytes(5000))
    before = contents(picture, annotation)
    assert before.startswith("5000+5000 ")
    for path in (picture, annotation):
        os.utime(path, (1, 1))
    shutil.copy(annotation, tmp_path / "b.png")
    assert contents(picture, tmp_path / "b.png") == before
    for position in (0, 2500, 4999):
        changed = bytearray(5000)
        changed[position] = 1
        annotation.write_bytes(changed)
        assert contents(picture, annotation) != before
    annotation.write_bytes(bytes(5000))
    picture.write_bytes(bytes(4999) + b"1")
    assert contents(picture, annotation) != before
    picture.unlink()
    with pytest.raises(SourceError, match=r"a.jpg: cannot be read"):
        contents(picture, annotation)


def test_what_is_passed_over_is_counted_in_one_line(make, caplog):
    class Partly:
        def __init__(self, source, **skipped):
            self.source, self.counts = source, Counter(skipped)

        def __getattr__(self, name):
            return getattr(self.source, name)

        def skipped(self):
            return self.counts

    _check(
        {
            "train": [Partly(make("a"), cows=2), make("b")],
            "val": [Partly(make("c"), cows=1, dots=4)],
        }
    )
    assert caplog.messages == ["passed over: 3 cows, 4 dots"]
