"""Objects that lie in several tiles of a picture, made one again.

Two tiles that overlap have both seen the strip that they share. What one of them has found of an
object there has to be what the other has; so parts are compared in the strip alone, however little
of the object that is. (Comparing whole parts, as non-maximum suppression does, misses an object
that is much longer than the strip is wide.)

Boxes are half-open XYXY_ABS in pixels of the picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2_cityscapes.structures.cropped_masks import Crop

__all__ = ["Part", "joined"]

Box = tuple[float, float, float, float]
_SAME = 0.5  # of the smaller of two parts in the strip, that the other has too


@dataclass(frozen=True)
class Part:
    """An instance that was found in a tile.

    Attributes:
        tile: number of the tile.
        seen: (left, top, right, bottom) pixels of the tile.
        thing: thing id.
        score: 0 to 1.
        box: around it.
        crop: its mask, None of models without.
    """

    tile: int
    seen: tuple[int, int, int, int]
    thing: int
    score: float
    box: Box
    crop: Crop | None = None


def joined(parts: Sequence[Part], same: float = _SAME) -> list[Part]:
    """One part for each object, the best score first.

    Parts of one class in two tiles are one object where, in the strip that the tiles share, they
    have `same` of the smaller one in common. The best match goes first; a part is matched with one
    part of another tile at most, and an object has one part of each tile at most. The whole has the
    best of the scores, all pixels of the masks and the box around the boxes.
    """
    pairs = [
        (common, i, j)
        for i, j in itertools.combinations(range(len(parts)), 2)
        if (common := _common(parts[i], parts[j])) >= same
    ]
    group = [{i} for i in range(len(parts))]
    for _, i, j in sorted(pairs, key=lambda pair: -pair[0]):
        if group[i] is group[j] or _tiles(parts, group[i]) & _tiles(parts, group[j]):
            continue
        group[i] |= group[j]
        for member in group[j]:
            group[member] = group[i]
    wholes = {id(members): members for members in group}.values()
    found = [_whole([parts[i] for i in sorted(members)]) for members in wholes]
    return sorted(found, key=lambda part: -part.score)


def _tiles(parts: Sequence[Part], members: set[int]) -> set[int]:
    return {parts[i].tile for i in members}


def _common(a: Part, b: Part) -> float:
    """Of the smaller one in the strip, the part that both have; 0 where nothing can be said."""
    if a.tile == b.tile or a.thing != b.thing:
        return 0.0
    strip = _overlap(a.seen, b.seen)
    first, second = _overlap(a.box, strip), _overlap(b.box, strip)
    shared = _overlap(first, second)
    if not _area(shared):
        return 0.0
    if a.crop is None or b.crop is None:
        return _area(shared) / min(_area(first), _area(second))
    left, top, right, bottom = (int(side) for side in strip)
    masks = [part.crop.window(top, left, bottom, right) for part in (a, b) if part.crop]
    smaller = min(int(mask.sum()) for mask in masks)
    return float((masks[0] & masks[1]).sum() / smaller) if smaller else 0.0


def _whole(parts: Sequence[Part]) -> Part:
    best = max(parts, key=lambda part: part.score)
    sides = np.array([part.box for part in parts])
    left, top = sides[:, :2].min(axis=0).tolist()
    right, bottom = sides[:, 2:].max(axis=0).tolist()
    crops = [part.crop for part in parts if part.crop is not None]
    crop = _union(crops) if len(crops) > 1 else best.crop
    return Part(best.tile, best.seen, best.thing, best.score, (left, top, right, bottom), crop)


def _union(crops: Sequence[Crop]) -> Crop:
    rows, columns = zip(*(crop.place for crop in crops), strict=True)
    top, left = min(r.start for r in rows), min(c.start for c in columns)
    bottom, right = max(r.stop for r in rows), max(c.stop for c in columns)
    pixels = np.zeros((bottom - top, right - left), dtype=bool)
    for crop in crops:
        h, w = crop.pixels.shape
        pixels[crop.top - top : crop.top - top + h, crop.left - left : crop.left - left + w] |= (
            crop.pixels
        )
    return Crop(top, left, pixels)


def _overlap(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
