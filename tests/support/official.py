"""cityscapesscripts, the referee in tests, is older than the numpy and Pillow of today.

Marks for tests of what it cannot do there. Reproduced with cityscapesscripts 2.3.0.
"""

from __future__ import annotations

import numpy as np
import PIL
import pytest

__all__ = ["ids_to_png", "instance_ap", "pixel_level"]


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


_NUMPY, _PILLOW = _version(np.__version__), _version(PIL.__version__)

# its evalInstanceLevelSemanticLabeling: writes numpy's integers as JSON
instance_ap = pytest.mark.skipif(_NUMPY >= (2, 3), reason="the official AP needs numpy below 2.3")
# its evalPixelLevelSemanticLabeling: np.in1d
pixel_level = pytest.mark.skipif(_NUMPY >= (2, 4), reason="the official IoU needs numpy below 2.4")
# its json2instanceImg: saves pictures of mode I
ids_to_png = pytest.mark.skipif(_PILLOW >= (13, 0), reason="the official id maps need Pillow < 13")
