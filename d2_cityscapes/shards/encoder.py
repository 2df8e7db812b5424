"""One shard file from its sources; what stands in it is told in `d2_cityscapes.shards.file`.

Sources are decoded and compressed in worker processes and written as they come, so that memory
holds a few images at a time. The beginning of the file is written twice: how long compressed images
are is known at the end only.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2_cityscapes.files import open_atomically, stream_sha256
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.labels.instances import COLUMNS, InstanceTable, find_instances
from d2_cityscapes.shards.file import TABLES, ShardError, head_checksum
from d2_cityscapes.shards.image_codecs import compress, find_codec
from d2_cityscapes.sources.check import Size, Source, check_ids, own_size
from d2_cityscapes.worker_pool import map_in_order

__all__ = ["ANNOTATION_CODECS", "encode_image", "write_shard"]

ANNOTATION_CODECS = ("zstd", "raw")
_SAFETENSORS_TYPES = {"int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
_LONGEST = 10**15  # bytes of compressed images: as many digits as the header keeps room for


class _Tensor(NamedTuple):
    """A tensor in the header: safetensors type, shape, bytes."""

    dtype: str
    shape: tuple[int, ...]
    length: int


def write_shard(
    path: Path,
    sources: Sequence[Source],
    pool: ProcessPoolExecutor | None,
    *,
    metadata: dict[str, str],
    size: tuple[int, int],
    table: LabelTable,
    on_image: Callable[[], object],
) -> str:
    """Write a file, whole or not at all.

    Args:
        path: the file.
        sources: its images.
        pool: worker processes.
        metadata: texts for its header; ``annotation_codec`` and ``image_codec`` are followed.
        size: canvas of the images.
        table: the classes.
        on_image: called after each image.

    Returns:
        SHA-256 of the file, from reading it back.

    Raises:
        ShardError: a source with unknown ids, or of another size.
        D2CityscapesError: a source that cannot be read, or the disk refused.
    """
    images, pixels = len(sources), size[0] * size[1]
    raw_ids, image_codec = metadata["annotation_codec"] == "raw", metadata["image_codec"]
    annotate = partial(_annotate, raw=raw_ids, size=size, table=table)
    found, frames = zip(*map_in_order(pool, annotate, sources), strict=True)
    tables = _tables(found)
    tensors: dict[str, _Tensor] = {}
    if raw_ids:
        tensors["annotations"] = _Tensor("U16", (images, *size), 2 * pixels * images)
    else:
        tables["blob_offsets"] = _offsets([len(frame) for frame in frames])
        tables["blob_crc32"] = np.array([zlib.crc32(frame) for frame in frames], dtype=np.int64)
        tensors["annotation_blob"] = _blob(sum(len(frame) for frame in frames))
    if image_codec == "none":
        tensors["images"] = _Tensor("U8", (images, 3, *size), 3 * pixels * images)
    else:
        tables["image_offsets"] = np.zeros(images + 1, dtype=np.int64)
        tensors["image_blob"] = _blob(_LONGEST)

    with open_atomically(path) as file:
        begin = _begin(metadata, tables, tensors)
        file.write(begin)
        encode_ids = partial(_encode_ids, size=size, table=table)
        for ids in map_in_order(pool, encode_ids, sources) if raw_ids else frames:
            file.write(ids)
        lengths = []
        encode = partial(encode_image, codec=image_codec, size=size)
        for image in map_in_order(pool, encode, sources):
            lengths.append(file.write(image))
            on_image()
        if image_codec != "none":
            tables["image_offsets"] = _offsets(lengths)
            tensors["image_blob"] = _blob(sum(lengths))
            file.seek(0)
            file.write(_begin(metadata, tables, tensors, room=len(begin)))
        file.seek(0)
        return stream_sha256(file)


def encode_image(source: Source, *, codec: str, size: tuple[int, int]) -> bytes:
    """The bytes of one image as they stand in a shard.

    Args:
        source: the image.
        codec: "none" or a name in `image_codecs.CODECS`.
        size: its canvas.
    """
    image, expected = source.image(), (*own_size(source, size), 3)
    if image.shape != expected or image.dtype != np.uint8:
        raise ShardError(
            f"{source.file_name}: {image.dtype} image of {image.shape}, expected uint8 RGB "
            f"of {expected}"
        )
    image = _on_canvas(image, size)
    if codec == "none":
        return image.transpose(2, 0, 1).tobytes()
    return find_codec(codec).encode(image)


def _annotate(
    source: Source, *, raw: bool, size: tuple[int, int], table: LabelTable
) -> tuple[InstanceTable, bytes]:
    """The instances of a source, and its compressed id map where it is not to be raw."""
    ids = _ids(source, size, table)
    frame = b""
    if not raw:
        frame = compress(_on_canvas(ids, size).astype("<u2").tobytes(), checksum=False)
    return find_instances(ids, table), frame


def _encode_ids(source: Source, *, size: tuple[int, int], table: LabelTable) -> bytes:
    return _on_canvas(_ids(source, size, table), size).astype("<u2").tobytes()


def _ids(source: Source, size: Size, table: LabelTable) -> np.ndarray:
    """The id map of a source in its own size, which fits into the canvas `size`."""
    ids = source.instance_ids()
    problems = check_ids(ids, own_size(source, size), table)
    if problems:
        raise ShardError(f"{source.file_name}: {'; '.join(problems)}")
    return ids


def _on_canvas(pixels: np.ndarray, size: Size) -> np.ndarray:
    """An (h, w) or (h, w, 3) array at the top left of an (H, W) one, the rest of which is 0."""
    height, width = pixels.shape[:2]
    if (height, width) == size:
        return pixels
    canvas = np.zeros((*size, *pixels.shape[2:]), dtype=pixels.dtype)
    canvas[:height, :width] = pixels
    return canvas


def _tables(found: Sequence[InstanceTable]) -> dict[str, np.ndarray]:
    every = InstanceTable.cat(found)
    return {
        "instance_offsets": _offsets([len(instances) for instances in found]),
        **{f"instance_{column}": getattr(every, column) for column in COLUMNS},
    }


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _blob(length: int) -> _Tensor:
    return _Tensor("U8", (length,), length)


def _begin(
    metadata: dict[str, str],
    tables: dict[str, np.ndarray],
    tensors: dict[str, _Tensor],
    *,
    room: int = 0,
) -> bytes:
    """The bytes in front of the pixels: a safetensors header with its length, and the tables.

    Args:
        metadata: texts of the header.
        tables: arrays, some of those named in `TABLES`.
        tensors: what follows the tables.
        room: the length that the result must have; 0 for as long as need be.
    """
    arrays = [(name, tables[name]) for name in TABLES if name in tables]
    layout = {
        name: _Tensor(_SAFETENSORS_TYPES[array.dtype.name], array.shape, array.nbytes)
        for name, array in arrays
    } | tensors
    content = b"".join(array.tobytes() for _, array in arrays)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape, length) in layout.items():
        span = [position, position + length]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": span}
        position += length
    header["__metadata__"]["checksum"] = head_checksum(header, content)
    text = json.dumps(header).encode()
    text = text.ljust(room - 8 - len(content) if room else -(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + content
