"""Points of outlines in other people's files, in pixels: numbers, and not far outside of the image.

What draws them counts in 32 bits, and takes time and memory for every pixel of a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2_cityscapes.sources.errors import SourceError

__all__ = ["near_points"]

_FARTHEST = 1 << 20  # px; a point may lie outside of the image, but not anywhere
_LONGEST = 1 << 21  # px around an outline; a picture may have 179 megapixels


def near_points(points: Sequence[Sequence[float]], what: str) -> list[tuple[float, float]]:
    """The points (x, y) of an outline.

    Args:
        points: as a file has them.
        what: they belong to, for errors.

    Raises:
        SourceError: points far outside of the image, NaN, or an outline of more pixels than any.
        TypeError, ValueError: no pairs of numbers.
    """
    found = [(x, y) for x, y in points]
    if not all(type(x) in _NUMBERS and type(y) in _NUMBERS for x, y in found):
        raise TypeError(f"{what} has points that are no numbers")
    if not all(abs(x) <= _FARTHEST and abs(y) <= _FARTHEST for x, y in found):  # nor nan
        raise SourceError(f"{what} has points far outside of the image")
    around = zip(found, found[1:] + found[:1], strict=True)
    if sum(math.dist(a, b) for a, b in around) > _LONGEST:
        raise SourceError(f"{what} has an outline of more than {_LONGEST} pixels")
    return found


_NUMBERS = (int, float)
