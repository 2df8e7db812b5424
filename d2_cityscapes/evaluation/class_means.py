"""Means over the classes that the truth has."""

from __future__ import annotations

import numpy as np

__all__ = ["mean_percent"]


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
