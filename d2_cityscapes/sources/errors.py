"""What is wrong with other people's files."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["SourceError"]


class SourceError(D2CityscapesError):
    """A dataset, or a file of one, that is missing, incomplete, damaged or of another kind."""
