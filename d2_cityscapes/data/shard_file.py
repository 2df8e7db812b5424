"""One shard: a safetensors file of images, instance-id maps and instance tables.

Shape letters: N images of one shard, M thing segments of all of them, H, W pixels. A shard holds

==================== ======== ============ ===============================================
tensor               dtype    shape        content
==================== ======== ============ ===============================================
``images``           uint8    (N, 3, H, W) RGB
``annotation_blob``  uint8    (B,)         a zstd frame each: instance-id maps, uint16
``blob_offsets``     int64    (N + 1,)     where each frame begins in the blob
``annotations``      uint16   (N, H, W)    instead of the two above: raw instance-id maps
``instance_offsets`` int64    (N + 1,)     first row of each image in the tables below
``instance_ids``     int32    (M,)         ids as in the map, ascending within an image
``instance_classes`` uint8    (M,)         train ids
``instance_boxes``   int32    (M, 4)       half-open XYXY_ABS pixels
``instance_areas``   int64    (M,)         pixels
``instance_crowd``   bool     (M,)         group regions
==================== ======== ============ ===============================================

and text metadata: format version, split, partition, file names, class names, label-table hash. The
tables stand first in the file, so that listing a dataset reads its beginning and no pixel.

Records are read with one positioned read into fresh memory. It is as fast as a copy from a memory
map when the file is cached and faster when it is not (a page fault fetches far less at a time), a
truncated file is a short read instead of a bus error, and a record is the caller's own copy.
"""

from __future__ import annotations

import functools
import json
import os
import weakref
from pathlib import Path

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError, safe_open

from d2_cityscapes.data.instances import InstanceTable
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable

__all__ = ["FORMAT_VERSION", "PREPARE", "ShardError", "ShardFile"]

FORMAT_VERSION = "1"
PREPARE = "run datasets/prepare_shards.py"
_TABLES = {
    "instance_offsets": (np.int64, 1),
    "instance_ids": (np.int32, 1),
    "instance_classes": (np.uint8, 1),
    "instance_boxes": (np.int32, 2),
    "instance_areas": (np.int64, 1),
    "instance_crowd": (np.bool_, 1),
}


class ShardError(D2CityscapesError):
    """A missing, truncated, mismatched or malformed shard; names the file and the remedy."""


class ShardFile:
    """One file. Its header and tables are read at first use, pixels record by record."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path = path
        self._label_table = table

    def __getstate__(self) -> dict:
        return {"path": self.path, "_label_table": self._label_table}

    @functools.cached_property
    def _file(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}; {PREPARE} again") from error
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    @functools.cached_property
    def _header(self) -> dict:
        """Tensor name -> dtype, shape and [begin, end) byte offsets in the file."""
        try:
            with safe_open(self.path, framework="np") as checked:  # validates the whole header
                metadata = dict(checked.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise self._error(" ".join(str(error).split())) from error
        if metadata.get("version") != FORMAT_VERSION:
            raise self._error(
                f"shard format version {metadata.get('version')}, not {FORMAT_VERSION}"
            )
        if metadata.get("label_table_hash") != self._label_table.hash:
            raise self._error(
                f"made with another label table ({metadata.get('label_table')}) than "
                f"{self._label_table.name}"
            )
        length = int.from_bytes(self._read(0, 8).tobytes(), "little")
        header = json.loads(self._read(8, length).tobytes())
        for name, entry in header.items():
            if name != "__metadata__":
                entry["data_offsets"] = [8 + length + o for o in entry["data_offsets"]]
        return header

    @functools.cached_property
    def file_names(self) -> list[str]:
        try:
            names = json.loads(self._header["__metadata__"]["file_names"])
        except (KeyError, ValueError) as error:
            raise self._error("no list of file names") from error
        if len(names) != self._tensor_shape("images", 4)[0]:
            raise self._error("as many file names as images expected")
        return names

    @functools.cached_property
    def image_size(self) -> tuple[int, int]:
        _, channels, height, width = self._tensor_shape("images", 4)
        if channels != 3 or self._header["images"]["dtype"] != "U8":
            raise self._error("images are not uint8 (N, 3, H, W)")
        return height, width

    @functools.cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        tables = {name: self._array(name, dtype) for name, (dtype, _) in _TABLES.items()}
        offsets, rows = tables["instance_offsets"], len(tables["instance_ids"])
        self._check_offsets("instance_offsets", offsets, rows)
        for name, (_, dimensions) in _TABLES.items():
            shape = tables[name].shape
            expected = (rows, 4)[:dimensions]
            if name != "instance_offsets" and shape != expected:
                raise self._error(f"{name} has shape {shape}, expected {expected}")
        return tables

    @functools.cached_property
    def _blob_offsets(self) -> np.ndarray:
        offsets = self._array("blob_offsets", np.int64)
        self._check_offsets("blob_offsets", offsets, self._tensor_shape("annotation_blob", 1)[0])
        return offsets

    def table(self, row: int) -> InstanceTable:
        tables = self._tables
        begin, end = tables["instance_offsets"][row : row + 2]
        columns = ("ids", "classes", "boxes", "areas", "crowd")
        return InstanceTable(**{c: tables[f"instance_{c}"][begin:end].copy() for c in columns})

    def image(self, row: int) -> torch.Tensor:
        height, width = self.image_size
        size = 3 * height * width
        begin = self._header["images"]["data_offsets"][0] + row * size
        return torch.from_numpy(self._read(begin, size)).view(3, height, width)

    def instance_ids(self, row: int) -> torch.Tensor:
        height, width = self.image_size
        if "annotations" in self._header:
            begin = self._header["annotations"]["data_offsets"][0]
            raw = self._read(begin + row * height * width * 2, height * width * 2)
        else:
            raw = self._decompress(row, height * width * 2)
        ids = raw.view("<u2").astype(np.int32).reshape(height, width)
        return torch.from_numpy(ids)

    def _decompress(self, row: int, size: int) -> np.ndarray:
        first, last = (int(o) for o in self._blob_offsets[row : row + 2])
        frame = self._read(self._header["annotation_blob"]["data_offsets"][0] + first, last - first)
        try:
            raw = zstandard.ZstdDecompressor().decompress(frame.tobytes(), max_output_size=size)
        except zstandard.ZstdError as error:
            raise self._error(f"instance ids of record {row}: {error}") from error
        if len(raw) != size:
            raise self._error(f"instance ids of record {row}: {len(raw)} bytes, expected {size}")
        return np.frombuffer(raw, dtype=np.uint8)

    def _read(self, begin: int, size: int) -> np.ndarray:
        """(size,) uint8, a fresh copy of the bytes from ``begin`` on."""
        buffer = np.empty(size, dtype=np.uint8)
        view, done = memoryview(buffer.data), 0
        while done < size:
            try:
                count = os.preadv(self._file, [view[done:]], begin + done)
            except OSError as error:
                raise self._error(error.strerror or "unreadable") from error
            if count == 0:
                raise self._error(f"ends at byte {begin + done}, expected {begin + size} or more")
            done += count
        return buffer

    def _array(self, name: str, dtype: type) -> np.ndarray:
        shape = self._tensor_shape(name)
        begin, end = self._header[name]["data_offsets"]
        if end - begin != int(np.prod(shape)) * np.dtype(dtype).itemsize:
            raise self._error(f"{name} is not of type {np.dtype(dtype).name}")
        return self._read(begin, end - begin).view(dtype).reshape(shape)

    def _tensor_shape(self, name: str, dimensions: int | None = None) -> tuple[int, ...]:
        if name not in self._header:
            raise self._error(f"no tensor {name!r}")
        shape = tuple(self._header[name]["shape"])
        if dimensions is not None and len(shape) != dimensions:
            raise self._error(f"{name} has shape {shape}, expected {dimensions} dimensions")
        return shape

    def _check_offsets(self, name: str, offsets: np.ndarray, total: int) -> None:
        images = len(self.file_names)
        in_order = len(offsets) == images + 1 and offsets[0] == 0 and offsets[-1] == total
        if not in_order or (np.diff(offsets) < 0).any():
            raise self._error(f"{name} does not divide {total} rows among {images} images")

    def _error(self, problem: str) -> ShardError:
        return ShardError(f"{self.path}: {problem}; delete it and {PREPARE} again")
