"""One shard: a safetensors file of images, instance-id maps and instance tables.

Shape letters: N images of one shard, M thing segments of all of them, H, W pixels. A shard holds

==================== ======== ============ ===============================================
tensor               dtype    shape        content
==================== ======== ============ ===============================================
``instance_offsets`` int64    (N + 1,)     first row of each image in the tables below
``instance_areas``   int64    (M,)         pixels
``instance_ids``     int32    (M,)         ids as in the map, ascending within an image
``instance_boxes``   int32    (M, 4)       half-open XYXY_ABS pixels
``instance_classes`` uint8    (M,)         train ids
``instance_crowd``   bool     (M,)         group regions
``blob_offsets``     int64    (N + 1,)     where each frame begins in ``annotation_blob``
``blob_crc32``       int64    (N,)         CRC-32 of each of these frames
``annotation_blob``  uint8    (B,)         a zstd frame each: instance-id maps, uint16
``annotations``      uint16   (N, H, W)    instead of the three above: raw instance-id maps
``images``           uint8    (N, 3, H, W) RGB
``image_offsets``    int64    (N + 1,)     where each frame begins in ``image_blob``
``image_blob``       uint8    (B,)         instead of ``images``: a frame of `image_codecs` each
==================== ======== ============ ===============================================

and text metadata: format version, split, partition, codecs, image size, file names, class names,
label-table hash, a fingerprint of the sources, and a checksum of all this and the tables. The
tables (offsets and instances) stand first in the file, so that listing a dataset reads its
beginning and no pixel. They are checked against the checksum when they are first read; compressed
images and id maps have checksums of their own (id maps one of the few bytes of a frame, as that of
the whole map would take longer than decoding it); raw ones are checked by ``--verify`` alone.

Where images differ in size, H and W are those of their common canvas, and the metadata also has
``sizes``, the (H, W) of each: an image and its id map lie at the top left of the canvas, the rest
is 0. A record has its own size.

Records are read with one positioned read into fresh memory. It is as fast as a copy from a memory
map when the file is cached and faster when it is not (a page fault fetches far less at a time), a
truncated file is a short read instead of a bus error, and a record is the caller's own copy.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import weakref
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.instances import COLUMNS, InstanceTable
from d2_cityscapes.memory import keep_freed_memory
from d2_cityscapes.shards.image_codecs import decompress, find_codec
from d2_cityscapes.shards.schema import (
    FORMAT_VERSION,
    TABLES,
    Header,
    SchemaError,
    VersionError,
    check_header,
)

__all__ = ["FORMAT_VERSION", "PREPARE", "TABLES", "ShardError", "ShardFile", "head_checksum"]

PREPARE = "run d2c prepare"
_LONGEST_FRAME = 1 << 16  # bytes, beside twice those of the pixels
_LONGEST_HEADER = 100_000_000  # bytes, as in safetensors itself
_OFFSETS = {"annotation_blob": "blob_offsets", "image_blob": "image_offsets"}


class ShardError(D2CityscapesError):
    """A missing, truncated, mismatched or malformed shard; names the file and the remedy."""


class _Head(NamedTuple):
    """What stands before the pixels.

    Attributes:
        metadata: texts by name.
        begins: where each tensor of pixels begins in the file.
        tables: the arrays named in `TABLES`, those that the file has.
        file_names: of the N images.
        canvas: (H, W) that every image takes.
        sizes: (H, W) of each image.
    """

    metadata: dict[str, str]
    begins: dict[str, int]
    tables: dict[str, np.ndarray]
    file_names: list[str]
    canvas: tuple[int, int]
    sizes: list[tuple[int, int]]


class ShardFile:
    """One file. Its beginning is read and checked at first use, pixels record by record."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path = path
        self._label_table = table

    def __getstate__(self) -> dict:
        return {"path": self.path, "_label_table": self._label_table}

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of the header."""
        return self._head.metadata

    @property
    def file_names(self) -> list[str]:
        """Base names of the source images."""
        return self._head.file_names

    def image_size(self, row: int) -> tuple[int, int]:
        """(H, W) of a record."""
        sizes = self._head.sizes
        if not 0 <= row < len(sizes):  # an index may list more
            raise self._error(f"has {len(sizes)} records, no record {row}")
        return sizes[row]

    def table(self, row: int) -> InstanceTable:
        """The thing segments of a record."""
        self.image_size(row)
        tables = self._head.tables
        begin, end = tables["instance_offsets"][row : row + 2]
        return InstanceTable(**{c: tables[f"instance_{c}"][begin:end].copy() for c in COLUMNS})

    def image(self, row: int) -> torch.Tensor:
        """(3, H, W) uint8 RGB image of a record."""
        rows, columns = self.image_size(row)
        if "images" in self._head.begins:
            height, width = self._head.canvas
            size = 3 * height * width
            pixels = self._read(self._head.begins["images"] + row * size, size)
            image = torch.from_numpy(pixels).view(3, height, width)
        else:
            image = self._decoded_image(row)
        return image[:, :rows, :columns].contiguous()

    def _decoded_image(self, row: int) -> torch.Tensor:
        try:
            codec = find_codec(self.metadata["image_codec"])
        except D2CityscapesError as error:
            raise ShardError(f"{self.path}: {error}") from error
        frame = self._frame("image_blob", row)
        try:
            return torch.from_numpy(codec.decode(frame, self._head.canvas))
        except ValueError as error:
            raise self._error(f"image of record {row}: {error}") from error

    def instance_ids(self, row: int) -> torch.Tensor:
        """(H, W) int32 instance-id map of a record."""
        return torch.from_numpy(self._id_map(row).astype(np.int32))

    def id_map(self, row: int) -> np.ndarray:
        """(H, W) uint16 instance-id map of a record, as it is stored."""
        return self._id_map(row).copy()

    def _id_map(self, row: int) -> np.ndarray:
        rows, columns = self.image_size(row)
        height, width = self._head.canvas
        size = 2 * height * width
        if "annotations" in self._head.begins:
            raw = self._read(self._head.begins["annotations"] + row * size, size)
        else:
            frame = self._frame("annotation_blob", row)
            if zlib.crc32(frame) != self._head.tables["blob_crc32"][row]:
                raise self._error(f"instance ids of record {row}: CRC-32 differs")
            try:
                raw = np.frombuffer(decompress(frame, size), dtype=np.uint8)
            except ValueError as error:
                raise self._error(f"instance ids of record {row}: {error}") from error
        ids = raw.view("<u2").reshape(height, width)[:rows, :columns]
        if ids.max() >= len(self._label_table.known_ids):  # lookups would fail
            raise self._error(f"instance ids of record {row}: {ids.max()} is not in the table")
        return ids

    @functools.cached_property
    def _file(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise ShardError(f"{self.path}: {error.strerror}; {PREPARE} again") from error
        weakref.finalize(self, os.close, descriptor)
        keep_freed_memory()
        return descriptor

    @functools.cached_property
    def _head(self) -> _Head:
        header, content, begin = self._read_head()
        self._check_label_table(header)
        tables = {name: _table(name, header, content) for name in TABLES if name in header.shapes}
        images = len(header.file_names)
        self._check_offsets("instance_offsets", tables, images, len(tables["instance_ids"]))
        for blob, offsets in _OFFSETS.items():
            if blob in header.shapes:
                self._check_offsets(offsets, tables, images, header.shapes[blob][0])
        self._check_instances(tables, header.canvas)
        begins = {name: begin + first for name, (first, _) in header.spans.items()}
        return _Head(
            header.metadata, begins, tables, header.file_names, header.canvas, header.sizes
        )

    def _read_head(self) -> tuple[Header, np.ndarray, int]:
        """Header, bytes of the tables, which have the checksum that it says, and where they begin
        in the file."""
        total = os.fstat(self._file).st_size
        length = int.from_bytes(self._read(0, 8).tobytes(), "little")
        begin = 8 + length
        if begin > total:
            raise self._error(f"{total} bytes, {begin} or more expected")
        if length > _LONGEST_HEADER:
            raise self._error(f"a header of {length} bytes; none is that long")
        try:
            document = json.loads(self._read(8, length).tobytes())
            header = check_header(document)
        except VersionError as error:
            raise self._error(str(error)) from error
        except SchemaError as error:
            raise self._error(f"its header is damaged: {error}") from error
        except (ValueError, RecursionError) as error:
            raise self._error("not a shard, or its header is damaged") from error
        if begin + header.length != total:
            raise self._error(f"{total} bytes, {begin + header.length} expected")
        content = self._read(begin, max(header.spans[t][1] for t in TABLES if t in header.spans))
        if header.metadata["checksum"] != head_checksum(document, content.data):
            raise self._error("header or tables differ from their checksum")
        return header, content, begin

    def _check_label_table(self, header: Header) -> None:
        ours, metadata, classes = self._label_table, header.metadata, header.classes
        expected = [c.name for c in ours.classes]
        if metadata["label_table_hash"] == ours.hash and classes == expected:
            return
        differ = [
            f"class {i} is {a!r} and {b!r}"
            for i, (a, b) in enumerate(itertools.zip_longest(classes, expected))
            if a != b
        ]
        raise ShardError(
            f"{self.path}: made with another label table ({metadata['label_table']}) than "
            f"{ours.name}" + "".join(f": {difference}" for difference in differ[:1]) + "; read it "
            f"with its own table, or delete it and {PREPARE} again"
        )

    def _check_offsets(
        self, name: str, tables: dict[str, np.ndarray], images: int, rows: int
    ) -> None:
        offsets = tables[name]
        in_order = len(offsets) == images + 1 and offsets[0] == 0 and offsets[-1] == rows
        if not in_order or (np.diff(offsets) < 0).any():
            raise self._error(f"{name} does not divide {rows} rows among {images} images")

    def _check_instances(self, tables: dict[str, np.ndarray], canvas: tuple[int, int]) -> None:
        """Instances are of thing classes, and lie on the canvas."""
        ids, classes = tables["instance_ids"], tables["instance_classes"]
        known, (height, width) = self._label_table.train_id_of, canvas
        x0, y0, x1, y1 = tables["instance_boxes"].T
        inside = (x0 >= 0) & (x0 < x1) & (x1 <= width) & (y0 >= 0) & (y0 < y1) & (y1 <= height)
        areas = tables["instance_areas"]
        sound = inside & (areas > 0) & (areas <= height * width) & (ids >= 0) & (ids < len(known))
        if (
            not sound.all()
            or not (
                (known[ids] == classes) & (self._label_table.thing_id_of_train[classes] >= 0)
            ).all()
        ):
            raise self._error("its table of instances has boxes, areas or classes that cannot be")

    def _frame(self, blob: str, row: int) -> bytes:
        """The frame of a record in ``image_blob`` or ``annotation_blob``."""
        first, last = self._head.tables[_OFFSETS[blob]][row : row + 2].tolist()
        height, width = self._head.canvas
        if last - first > 6 * height * width + _LONGEST_FRAME:
            raise self._error(f"{last - first} bytes in {blob} for record {row}")
        return self._read(self._head.begins[blob] + first, last - first).tobytes()

    def _read(self, begin: int, size: int) -> np.ndarray:
        """(size,) uint8, a fresh copy of the bytes from ``begin`` on."""
        buffer = np.empty(size, dtype=np.uint8)
        view, done = memoryview(buffer.data), 0
        while done < size:
            try:
                count = self._read_into(view[done:], begin + done)
            except OSError as error:
                raise self._error(error.strerror or "unreadable") from error
            if count == 0:
                raise self._error(f"ends at byte {begin + done}, expected {begin + size} or more")
            done += count
        return buffer

    def _read_into(self, view: memoryview, begin: int) -> int:
        """Some bytes of the file from ``begin`` on; how many."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file, [view], begin)
        # Windows: a file of its own, for other threads read at other places
        with open(self.path, "rb", buffering=0) as file:
            file.seek(begin)
            return file.readinto(view) or 0

    def _error(self, problem: str) -> ShardError:
        return ShardError(f"{self.path}: {problem}; delete it and {PREPARE} again")


def head_checksum(header: dict[str, Any], tables: bytes | memoryview) -> str:
    """SHA-256 of a header, without the entry "checksum" itself, and the bytes of the tables."""
    metadata = {k: v for k, v in header["__metadata__"].items() if k != "checksum"}
    text = json.dumps({**header, "__metadata__": metadata}, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode())
    digest.update(tables)
    return digest.hexdigest()


def _table(name: str, header: Header, content: np.ndarray) -> np.ndarray:
    begin, end = header.spans[name]
    return content[begin:end].view(TABLES[name][0]).reshape(header.shapes[name])
