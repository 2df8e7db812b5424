"""Run lengths against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as mask_api

from d2_cityscapes.evaluation.instances.rle import encode_crop, encode_mask, mask_box

SIZE = (7, 9)


def official(mask: np.ndarray) -> dict:
    return mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))


def make_mask(*boxes: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        make_mask(),
        make_mask((0, 0, 7, 9)),
        make_mask((2, 3, 5, 6)),
        make_mask((0, 0, 1, 1)),
        make_mask((6, 8, 7, 9)),
        make_mask((4, 2, 7, 4), (0, 4, 3, 6)),  # a run goes on in the next column
        make_mask((0, 2, 7, 5)),
        make_mask((0, 0, 7, 1), (0, 8, 7, 9)),
        make_mask((0, 0, 1, 1), size=(1, 1)),
    ],
)
def test_rle_is_that_of_pycocotools(mask: np.ndarray) -> None:
    assert encode_mask(mask) == official(mask)


@given(
    arrays.arrays(
        bool,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.booleans(),
        fill=st.booleans(),
    )
)
def test_any_rle_is_that_of_pycocotools(mask: np.ndarray) -> None:
    expected = official(mask)
    assert encode_mask(mask) == expected
    assert encode_mask(np.asfortranarray(mask)) == expected
    assert encode_mask(np.repeat(mask, 2, axis=1)[:, ::2]) == expected


def test_a_crop_need_not_be_tight() -> None:
    mask = make_mask((2, 3, 4, 5), (6, 4, 7, 5))
    for top, left, bottom, right in ((0, 0, 7, 9), (2, 3, 7, 5), (1, 0, 7, 8)):
        crop = mask[top:bottom, left:right]
        assert encode_crop(crop, top, left, SIZE) == official(mask)


def test_box_is_half_open() -> None:
    assert mask_box(make_mask((2, 3, 5, 4))) == (3, 2, 4, 5)
    assert mask_box(make_mask((6, 8, 7, 9), (0, 1, 1, 2))) == (1, 0, 9, 7)
    assert mask_box(make_mask()) == (0, 0, 0, 0)
