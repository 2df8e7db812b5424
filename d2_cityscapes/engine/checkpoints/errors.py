"""What can be wrong with weights."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["CheckpointError"]


class CheckpointError(D2CityscapesError):
    """Weights that cannot be fetched or read, or that do not fit the model or the data."""
