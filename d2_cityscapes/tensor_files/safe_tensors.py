"""``.safetensors``: tensors and texts, with nothing in them that could run.

Read with ordinary reads into memory of each tensor's own. A memory map, the way of safetensors'
own functions, is tens of times slower on network file systems, and what it has given is lost or
kills the process when the file changes under it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

from d2_cityscapes.files import open_atomically
from d2_cityscapes.tensor_files.errors import TensorFileError

__all__ = ["SAFETENSORS", "read_safetensors", "read_texts", "write_safetensors"]

SAFETENSORS = ".safetensors"  # by which the format is known

# The parser takes some ten times the bytes of a header, which safetensors lets be 100 MB long;
# those of networks have less than one.
_LONGEST_HEADER = 1 << 24  # bytes
_TEXTS = "__metadata__"
# The format's names of types.
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name -> tensor, on the CPU, and the texts beside them.

    safetensors checks the header: that it is whole, that the tensors are of known types, fill the
    file, and lie apart. Nothing is allocated before.

    Raises:
        TensorFileError: damaged, a header of more than 16 MiB, or two entries of one name.
        OSError: it cannot be opened.
    """
    texts = read_texts(path)
    try:
        with safe_open(path, framework="pt", backend="pread") as file:
            return file.get_tensors(), texts
    except OSError:
        raise
    except Exception as error:  # safetensors' own, or PyTorch's of a shape
        raise _damaged(path, error) from error


def read_texts(path: str | Path) -> dict[str, str]:
    """The texts beside the tensors alone; of the file, only its header is read.

    Raises:
        TensorFileError, OSError: as of `read_safetensors`.
    """
    with open(path, "rb") as file:
        header = _header(file, path)
    try:
        with safe_open(path, framework="pt", backend="pread") as checked:
            texts = checked.metadata() or {}
        json.loads(header, object_pairs_hook=_without_twins)
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path, error) from error
    return dict(texts)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]
) -> None:
    """Write tensors, in any layout, on any device, and texts; the file is whole or not there.

    The same content gives the same bytes: safetensors' own function writes texts in random order.
    Tensors that share memory are written once each, and one at a time is copied.

    Raises:
        TensorFileError: a tensor of a type that the format does not have.
        D2CityscapesError: the disk refused; what stood there before still does.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _TYPES or tensor.layout != torch.strided or tensor.is_quantized:
            raise TensorFileError(f"{path}: {name}: {SAFETENSORS} has no {tensor.dtype} tensors")
    # The widest first, so that each begins at a multiple of its type's size.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {_TEXTS: dict(sorted(texts.items()))}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        shape = list(tensor.shape)
        kind = _TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open_atomically(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in ordered:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def _header(file: BinaryIO, path: str | Path) -> bytes:
    length = int.from_bytes(file.read(8), "little")
    if length > _LONGEST_HEADER:
        raise TensorFileError(
            f"{path}: cannot be read as weights: damaged, as its header would have {length} bytes"
        )
    return file.read(length)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two entries with one name safetensors takes the last, and others may take the first."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("two entries of one name")
    return found


def _damaged(path: str | Path, error: Exception) -> TensorFileError:
    reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160, placeholder=" ...")
    return TensorFileError(f"{path}: cannot be read as weights: damaged ({reason})")
