"""JPEG 2000 shards need an imagecodecs that has no wheel for Python 3.10."""

from __future__ import annotations

import pytest

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.shards.image_codecs import CODECS as _CODECS
from d2_cityscapes.shards.image_codecs import find_codec

__all__ = ["CODECS", "needed"]


def _here() -> bool:
    try:
        find_codec("jpeg2000-ht")
    except D2CityscapesError:
        return False
    return True


needed = pytest.mark.skipif(not _here(), reason="no imagecodecs with HTJ2K here")
# of images, for parametrize
CODECS = tuple(pytest.param(name, marks=needed if "jpeg" in name else ()) for name in _CODECS)
