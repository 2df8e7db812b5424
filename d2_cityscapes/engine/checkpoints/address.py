"""``safetensors://FILE``, by which stock Detectron2 reads ``.safetensors`` as MODEL.WEIGHTS.

Its checkpointer takes every file that it does not know for a pickle of PyTorch, and lets nobody
add a format. What it lets others add are addresses: one of these is answered with a copy of the
file as PyTorch writes it, which is there until the process ends. Commands of this package read the
file itself, by its path and by this address. Importing this module registers it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathHandler, PathManager

__all__ = ["SCHEME", "file_of", "for_detectron2"]

SCHEME = "safetensors:"  # of "safetensors:///a", Detectron2 after 0.6 may make "safetensors:/a"


def file_of(address: str) -> str:
    """The path behind "safetensors://PATH"; any other address or path as it is."""
    rest = address.removeprefix(SCHEME)
    return address if rest == address else rest.removeprefix("//")


def for_detectron2(weights: str) -> str:
    """MODEL.WEIGHTS as stock Detectron2 reads it, where it would not by its path."""
    return f"{SCHEME}//{weights}" if weights.endswith(".safetensors") else weights


class _SafetensorsHandler(PathHandler):
    def __init__(self) -> None:
        super().__init__()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def _get_supported_prefixes(self) -> list[str]:
        return [SCHEME]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        from d2_cityscapes.engine.checkpoints.weights_file import (
            read_about,
            read_weights_file,
            write_weights_file,
        )

        source = Path(file_of(path))
        weights = read_weights_file(source)["model"]
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="d2_cityscapes_")
        copy = Path(tempfile.mkdtemp(dir=self._folder.name)) / f"{source.stem}.pth"
        write_weights_file(copy, weights, read_about(source))
        return str(copy)


PathManager.register_handler(_SafetensorsHandler())
