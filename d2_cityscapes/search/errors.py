"""What goes wrong in a search."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["SearchError"]


class SearchError(D2CityscapesError):
    """A search that cannot start or go on."""
