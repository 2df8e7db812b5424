"""Colours (RGB, 0..255) and chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Color", "coin", "column", "mix", "pick", "vary"]

Color = tuple[float, float, float]
T = TypeVar("T")


def column(color: Sequence[float] | np.ndarray) -> np.ndarray:
    """(3, 1) float32: a colour for arrays of (3, N), which take less time than (N, 3)."""
    return np.array(color, dtype=np.float32)[:, None]


def mix(first: Sequence[float], second: Sequence[float], share: float) -> Color:
    """``first`` with a ``share`` (0..1) of ``second``."""
    keep = 1 - share
    return (
        keep * first[0] + share * second[0],
        keep * first[1] + share * second[1],
        keep * first[2] + share * second[2],
    )


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def vary(rng: np.random.Generator, options: Sequence[Color], spread: float = 10) -> Color:
    """One of the colours, a little brighter or darker and off its hue."""
    base, shift = pick(rng, options), rng.uniform(-spread, spread)
    red, green, blue = (c + shift + rng.uniform(-4, 4) for c in base)
    return red, green, blue


def coin(rng: np.random.Generator) -> int:
    """-1 or 1."""
    return 1 if rng.random() < 0.5 else -1
