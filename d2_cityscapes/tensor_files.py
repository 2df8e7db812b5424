"""Files of tensors and arrays: read without running what they may hold, written whole or not."""

from __future__ import annotations

import codecs
import pickle
import textwrap
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_safetensors

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import open_atomically

__all__ = ["TensorFileError", "read_tensor_file", "write_tensor_file"]


class TensorFileError(D2CityscapesError):
    """A file that is damaged, or that holds more than tensors, arrays and plain values."""


def read_tensor_file(path: str | Path) -> Any:
    """The content of a file of PyTorch, a ``.pkl`` of numpy arrays or ``.safetensors``, on the CPU.

    The first two are pickles, which could call anything: here nothing but tensors, arrays, plain
    values and their containers is made of them. This is the only place where this package opens
    such files.

    Raises:
        TensorFileError: damaged, or with anything else in it.
        OSError: it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        try:
            if path.suffix == ".pkl":
                return _ArrayUnpickler(file, encoding="latin1").load()  # older ones: Python 2's
            if path.suffix == ".safetensors":
                return load_safetensors(file.read())
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may fail in any way
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
            raise TensorFileError(
                f"{path}: cannot be read as weights: damaged, or it holds more than arrays and "
                f"plain values ({reason})"
            ) from error


def write_tensor_file(path: str | Path, content: Any) -> None:
    """Write what `torch.save` takes, whole or not at all.

    Raises:
        D2CityscapesError: the disk refused; what stood there before still does.
    """
    with open_atomically(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # PyTorch notices by its position in the file that the disk is full.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes; `codecs.encode` would take any codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return codecs.latin_1_encode(text)[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Knows numpy's arrays and scalars, and nothing else that could be called."""

    def find_class(self, module: str, name: str) -> Any:
        known = _ARRAY_PARTS.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known


# Under the names before numpy 2. Its helpers are private, so they are taken from what it pickles.
_ARRAY_PARTS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float32(1).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0],
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
