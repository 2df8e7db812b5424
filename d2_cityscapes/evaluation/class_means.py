"""Means over the classes that were seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["mean_of_seen", "mean_percent"]


def mean_of_seen(values: Iterable[float | None]) -> float | None:
    """The mean over what is not None; None where all is."""
    seen = [value for value in values if value is not None]
    return sum(seen) / len(seen) if seen else None


def mean_percent(values: np.ndarray) -> tuple[float | None, int]:
    """The mean in percent over what is not nan, and the number of classes in it.

    Args:
        values: (T, C) fractions, nan in the columns of classes without truth.

    Returns:
        None and 0 where no class has truth.
    """
    seen = ~np.isnan(values)
    classes = int(seen.any(axis=0).sum())
    return (100 * float(values[seen].mean()), classes) if classes else (None, 0)
