"""Random street-like maps of instance ids: overlapping rectangles of every kind of id."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

# stuff, void, instances of six classes, group regions, an instance of a class that is not evaluated
_IDS = (
    7,
    8,
    11,
    21,
    23,
    0,
    1,
    24000,
    24001,
    25000,
    26000,
    26001,
    28000,
    32000,
    33000,
    24,
    26,
    29000,
)


def _paint(seed: int, size: tuple[int, int] = (48, 96), shapes: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    ids = np.full(size, rng.choice(_IDS), dtype=np.int32)
    for instance_id in rng.choice(_IDS, shapes):
        height, width = rng.integers(2, size[0] // 2), rng.integers(2, size[1] // 2)
        top, left = rng.integers(0, size[0] - height), rng.integers(0, size[1] - width)
        ids[top : top + height, left : left + width] = instance_id
    return ids


def _disturb(ids: np.ndarray, seed: int) -> np.ndarray:
    """A prediction for a map: moved by some pixels, partly repainted."""
    rng = np.random.default_rng(seed)
    moved = np.roll(ids, rng.integers(-3, 4, size=2), axis=(0, 1))
    other = _paint(seed + 1, ids.shape)
    return np.where(_paint(seed + 2, ids.shape) > 28500, other, moved)


@pytest.fixture(scope="session")
def paint() -> Callable[..., np.ndarray]:
    """(seed, size, shapes) -> (H, W) int32 instance ids."""
    return _paint


@pytest.fixture(scope="session")
def disturb() -> Callable[[np.ndarray, int], np.ndarray]:
    """(ids, seed) -> a prediction for them."""
    return _disturb
