"""Run lengths (RLE) of bool masks: byte for byte those of pycocotools, from the mask's box alone.

An RLE counts, down the columns, pixels outside and inside of the mask in turn. All its runs end
within the mask's box, so a mask of two million pixels costs one pass that finds the box.

Shape letters: H, W pixels of the image; h, w pixels of a box. Boxes are half-open XYXY_ABS in
pixels: a one-pixel object is 1 wide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as mask_api

__all__ = ["encode_crop", "encode_mask", "mask_box"]


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The tight box of an (H, W) bool mask; (0, 0, 0, 0) where it is empty."""
    # Bitwise "or" of whole rows runs at the speed of memory, twice that of mask.any(axis=0).
    columns = np.flatnonzero(np.bitwise_or.reduce(mask.view(np.uint8), axis=0))
    if not len(columns):
        return 0, 0, 0, 0
    left, right = int(columns[0]), int(columns[-1]) + 1
    rows = np.flatnonzero(mask[:, left:right].any(axis=1))
    return left, int(rows[0]), right, int(rows[-1]) + 1


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """RLE of an (H, W) bool mask: {"size": [H, W], "counts": bytes}."""
    left, top, right, bottom = mask_box(mask)
    return encode_crop(mask[top:bottom, left:right], top, left, mask.shape)


def encode_crop(crop: np.ndarray, top: int, left: int, size: tuple[int, ...]) -> dict[str, Any]:
    """RLE of the mask of size (H, W) that is an (h, w) bool crop at (top, left), else empty."""
    h, w = crop.shape
    # A run begins or ends at (row, column) where the pixel differs from the one above it; every
    # column of the crop is between two pixels outside.
    padded = np.zeros((h + 2, w), dtype=bool)
    padded[1:-1] = crop
    rows, columns = np.divmod(np.flatnonzero(padded[1:] != padded[:-1]), max(w, 1))
    ends = (left + columns) * size[0] + top + rows
    ends.sort()
    if h == size[0]:  # a run that ends where one begins, on top of the next column, goes on
        ends, times = np.unique(ends, return_counts=True)
        ends = ends[times == 1]
    pixels = size[0] * size[1]
    counts = np.diff(ends, prepend=0, append=pixels)
    if len(ends) and ends[-1] == pixels:
        counts = counts[:-1]
    return mask_api.frPyObjects({"counts": counts, "size": list(size)}, *size)
