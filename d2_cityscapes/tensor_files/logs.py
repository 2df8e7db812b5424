"""Checkpoints with objects of a training's logs beside the weights, which are read past.

mmdetection 3 writes its history of losses and rates into every checkpoint, as objects of mmengine.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import torch

__all__ = ["Unread", "load_without_logs"]

_LOGS = ("mmengine.", "mmcv.", "mmdet.")
_WITHIN = ("numpy.", "_codecs.", "builtins.getattr")  # what such objects are made of


class Unread:
    """In the place of an object that is not made: it takes anything, and keeps and does nothing."""

    __slots__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Any arguments."""

    def __setstate__(self, state: Any) -> None:
        """Any state."""


def load_without_logs(file: BinaryIO) -> Any:
    """A file of `torch.save` with an `Unread` for each object of such logs, on the CPU.

    PyTorch's restricted unpickler reads it as ever: it imports nothing that the file names, and
    calls nothing but what makes tensors.

    Raises:
        Exception: of any kind: no such file, damaged, or with objects of anything else.
    """
    file.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    others = [name for name in names if not name.startswith(_LOGS + _WITHIN)]
    if others or not any(name.startswith(_LOGS) for name in names):
        raise ValueError(f"objects of {', '.join(sorted(others or names))}")
    file.seek(0)
    unread: list[Any] = [(Unread, name) for name in names]
    with torch.serialization.safe_globals(unread):
        return torch.load(file, map_location="cpu", weights_only=True)
