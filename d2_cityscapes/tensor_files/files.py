"""Every format of tensors behind one reader, and a switch for pickles that may run anything."""

from __future__ import annotations

import contextlib
import logging
import pickle
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO

import torch

from d2_cityscapes.files import open_atomically
from d2_cityscapes.tensor_files.errors import TensorFileError
from d2_cityscapes.tensor_files.logs import load_without_logs
from d2_cityscapes.tensor_files.pickles import load_arrays
from d2_cityscapes.tensor_files.safe_tensors import SAFETENSORS, read_safetensors

__all__ = ["pickles_allowed", "read_tensor_file", "write_tensor_file"]

logger = logging.getLogger(__name__)

_allowed: ContextVar[bool] = ContextVar("pickles_allowed", default=False)


@contextlib.contextmanager
def pickles_allowed(allowed: bool = True) -> Iterator[None]:
    """Let `read_tensor_file` unpickle, while the block runs, what it refuses otherwise.

    That runs whatever the file says, with all rights of the user: for old files of one's own. What
    can be read without is read without.

    Args:
        allowed: False changes nothing.
    """
    token = _allowed.set(_allowed.get() or allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def read_tensor_file(path: str | Path) -> Any:
    """The content of a file of PyTorch, a ``.pkl`` of numpy arrays or ``.safetensors``, on the CPU.

    The first two are pickles, which could call anything: here nothing but tensors, arrays, plain
    values and their containers is made of them, unless inside of `pickles_allowed`. Objects of logs
    that are known (see `load_without_logs`) are read past. This is the only place where this
    package opens such files.

    Returns:
        Of ``.safetensors`` name -> tensor; otherwise whatever was written.

    Raises:
        TensorFileError: damaged, or with anything else in it.
        OSError: it cannot be opened.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        return read_safetensors(path)[0]
    with open(path, "rb") as file:
        try:
            return _restricted(file, path.suffix)
        except Exception as error:  # a damaged file may fail in any way
            if _allowed.get():
                return _unrestricted(file, path)
            reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
            raise TensorFileError(
                f"{path}: cannot be read as weights: damaged, or it holds more than arrays and "
                f"plain values ({reason}); a file of your own is read with --allow-pickle, which "
                "runs what it holds"
            ) from error


def _restricted(file: BinaryIO, suffix: str) -> Any:
    if suffix == ".pkl":
        return load_arrays(file)
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # of something that it does not know
        with contextlib.suppress(Exception):
            return load_without_logs(file)
        raise error


def _unrestricted(file: BinaryIO, path: Path) -> Any:
    logger.warning(
        "%s: holds more than arrays and plain values, and is unpickled as --allow-pickle asks: "
        "code in it runs now",
        path,
    )
    file.seek(0)
    try:
        if path.suffix == ".pkl":
            return pickle.load(file, encoding="latin1")
        return torch.load(file, map_location="cpu", weights_only=False)
    except Exception as error:
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
        raise TensorFileError(f"{path}: cannot be unpickled ({reason})") from error


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
