"""Batches padded to coarse multiples, so that few sizes occur."""

from __future__ import annotations

from torch import nn

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["pad_to_multiple"]


def pad_to_multiple(model: nn.Module, pixels: int) -> None:
    """Let a model pad its batches to multiples of so many pixels, in place.

    The meta-architectures ask their backbone, whose class changes for that, nothing else.

    Args:
        model: with a backbone.
        pixels: a multiple of what the backbone asks for by itself.

    Raises:
        D2CityscapesError: no such multiple, or no backbone.
    """
    backbone = getattr(model, "backbone", None)
    if backbone is None:
        raise D2CityscapesError(
            f"INPUT.SIZE_DIVISIBILITY: {type(model).__name__} has no backbone: set it to 0"
        )
    own = getattr(backbone, "size_divisibility", 0) or 1
    if pixels < 1 or pixels % own:
        raise D2CityscapesError(
            f"INPUT.SIZE_DIVISIBILITY {pixels}: use a multiple of {own}, which the backbone needs, "
            "or 0"
        )
    stock = type(backbone)
    backbone.__class__ = type(
        stock.__name__, (stock,), {"size_divisibility": pixels, "__module__": stock.__module__}
    )
