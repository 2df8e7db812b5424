"""What can be wrong with a file of tensors."""

from __future__ import annotations

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["TensorFileError"]


class TensorFileError(D2CityscapesError):
    """A file that is damaged, or that holds more than tensors, arrays and plain values."""
