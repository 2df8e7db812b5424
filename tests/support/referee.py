"""cityscapesscripts, the referee in tests, is older than the numpy of today.

Of its version 2.3.0, evalPixelLevelSemanticLabeling and evalInstanceLevelSemanticLabeling call
np.in1d, which numpy 2.4 does not have; the latter also writes numpy's integers as JSON, which fails
from numpy 2.3 on.
"""

from __future__ import annotations

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as instance_level

__all__ = ["as_it_is", "mend"]

_NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])

# for a test of the official AP in a process, or a place, that `mend` does not reach
as_it_is = pytest.mark.skipif(_NUMPY >= (2, 3), reason="the official AP needs numpy below 2.3")


def mend(patch: pytest.MonkeyPatch) -> None:
    """Make it judge with any numpy: np.in1d is back, and files that nobody reads are left out."""
    if not hasattr(np, "in1d"):
        patch.setattr(np, "in1d", np.isin, raising=False)
    if _NUMPY >= (2, 3):
        patch.setattr(instance_level, "writeDict2JSON", lambda *_: None)
