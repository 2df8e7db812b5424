"""Objects that a seam has cut are one again, others stay two."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.engine.prediction.seams import Part, joined
from d2_cityscapes.structures.cropped_masks import Crop

# two tiles of a picture of 60 x 100 pixels that share the columns 40 to 60
LEFT, RIGHT = (0, 0, 60, 60), (40, 0, 100, 60)


def part(tile: int, box: tuple[int, int, int, int], *, masked: bool, score=0.5, thing=2) -> Part:
    """A rectangle that was found in a tile, as far as that reaches."""
    seen = (LEFT, RIGHT)[tile]
    left, right = max(box[0], seen[0]), min(box[2], seen[2])
    pixels = np.ones((box[3] - box[1], right - left), dtype=bool)
    crop = Crop(box[1], left, pixels) if masked else None
    return Part(tile, seen, thing, score, (left, box[1], right, box[3]), crop)


@pytest.mark.parametrize("masked", [True, False])
def test_halves_of_one_object_are_joined(masked: bool) -> None:
    """A bus of 80 pixels, of which the tiles share 20: a quarter of what they see."""
    bus = (10, 20, 90, 40)
    (whole,) = joined(
        [part(0, bus, masked=masked, score=0.6), part(1, bus, masked=masked, score=0.9)]
    )
    assert whole.box == bus and whole.score == 0.9
    if masked:
        assert whole.crop.place == (slice(20, 40), slice(10, 90)) and whole.crop.pixels.all()


@pytest.mark.parametrize("masked", [True, False])
def test_what_both_tiles_see_whole_is_one(masked: bool) -> None:
    found = [part(tile, (44, 10, 56, 30), masked=masked, score=0.5 + tile / 10) for tile in (0, 1)]
    (whole,) = joined(found)
    assert whole.box == (44, 10, 56, 30) and whole.score == 0.6


@pytest.mark.parametrize("masked", [True, False])
def test_others_stay_two(masked: bool) -> None:
    one = part(0, (20, 10, 60, 20), masked=masked)
    for other in (
        part(1, (40, 30, 80, 40), masked=masked),  # below it
        part(1, (40, 10, 80, 20), masked=masked, thing=3),  # of another class
        part(0, (20, 10, 60, 20), masked=masked),  # of the same tile
        part(1, (62, 10, 80, 20), masked=masked),  # outside of the strip
    ):
        assert len(joined([one, other])) == 2


def test_masks_decide_where_boxes_would_join() -> None:
    """Two that stand before each other: one box, pixels of their own."""
    upper, lower = (part(tile, (40, 10, 60, 30), masked=True) for tile in (0, 1))
    upper.crop.pixels[10:] = False
    lower.crop.pixels[:10] = False
    assert len(joined([upper, lower])) == 2


def test_each_is_joined_with_the_best_match_alone() -> None:
    crowd = [part(0, (30, 10, 60, 30), masked=False), part(0, (30, 14, 60, 34), masked=False)]
    other = [part(1, (40, 10, 70, 30), masked=False), part(1, (40, 14, 70, 34), masked=False)]
    boxes = {whole.box for whole in joined([*crowd, *other])}
    assert boxes == {(30, 10, 70, 30), (30, 14, 70, 34)}


def test_the_best_score_comes_first() -> None:
    found = [part(0, (0, 0, 9, 9), masked=False, score=s) for s in (0.2, 0.9, 0.5)]
    assert [whole.score for whole in joined(found)] == [0.9, 0.5, 0.2]
    assert joined([]) == []
