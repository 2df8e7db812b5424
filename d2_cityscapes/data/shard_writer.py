"""Writing shards: a list of sources becomes safetensors files and their ``index.json``.

The same sources give the same bytes, whatever the number of workers. Every file is written under a
temporary name, flushed to disk and renamed, and the index is rewritten after each shard, so a
killed run leaves only whole shards and the next one continues behind them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import zstandard
from tqdm import tqdm

from d2_cityscapes.data.instances import InstanceTable, find_instances
from d2_cityscapes.data.shard_file import FORMAT_VERSION, ShardError
from d2_cityscapes.data.shards import INDEX_NAME, ShardReader, read_index
from d2_cityscapes.files import write_atomically
from d2_cityscapes.labels import CITYSCAPES, LabelTable

__all__ = ["ANNOTATION_CODECS", "Source", "verify_shards", "write_shards"]

ANNOTATION_CODECS = ("zstd", "raw")
_ZSTD_LEVEL = 9
_SAFETENSORS_TYPES = {
    "int64": "I64",
    "int32": "I32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Source(Protocol):
    """One annotated image to be packed; must be picklable to reach worker processes."""

    file_name: str  # base name, unique within a split
    size: tuple[int, int]  # (H, W)
    fingerprint: str  # changes when the source changes; cheap to compute

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""

    def instance_ids(self) -> np.ndarray:
        """(H, W) integers in the encoding of `d2_cityscapes.labels`."""


def write_shards(
    sources: Sequence[Source],
    output: str | Path,
    *,
    split: str,
    partitions: int = 1,
    annotation_codec: str = "zstd",
    workers: int = 1,
    table: LabelTable = CITYSCAPES,
    progress: bool = False,
) -> list[Path]:
    """Pack sources, in their order, into contiguous shards of nearly equal size.

    Shards that a previous call with the same sources finished are kept as they are.

    Args:
        sources: the images of one split, all of one size.
        output: folder of the shards and of ``index.json``; created if need be.
        split: name of the split, e.g. "train".
        partitions: number of shards; fewer where there are fewer sources.
        annotation_codec: "zstd" (13 kB a map) or "raw" (plain uint16 maps, 4 MB each at 1024x2048).
        workers: processes that decode and compress.
        table: the classes; ids that it does not know are refused.
        progress: show a progress bar.

    Returns:
        The paths of all shards of the split.

    Raises:
        ShardError: sources of different sizes or with unknown ids, shards of the same split from
            other sources in the folder, or too little room on the disk.
    """
    output = Path(output)
    if annotation_codec not in ANNOTATION_CODECS:
        raise ShardError(
            f"annotation codec {annotation_codec!r}; use {' or '.join(ANNOTATION_CODECS)}"
        )
    if not sources:
        raise ShardError(f"no images to pack for split {split!r}")
    sizes = {source.size for source in sources}
    if len(sizes) > 1:
        raise ShardError(f"images of one split must have one size (H, W), found {sorted(sizes)}")
    plans = _plan(sources, split, partitions)
    entries = _existing_entries(output)
    todo = [
        name for name in plans if not _is_done(output, entries, name, plans[name], annotation_codec)
    ]
    stale = [n for n, e in entries.items() if e["split"] == split and (n not in plans or n in todo)]
    if stale:
        raise ShardError(
            f"{output}: holds shards of split {split!r} made from other images or settings "
            f"({', '.join(sorted(stale))}); delete them and {INDEX_NAME}, or name another folder"
        )
    _check_room(output, [s for name in todo for s in plans[name]], annotation_codec)
    output.mkdir(parents=True, exist_ok=True)
    images = sum(len(plans[name]) for name in todo)
    with (
        ProcessPoolExecutor(max(workers, 1)) as pool,
        tqdm(total=images, desc=f"packing {split}", unit="image", disable=not progress) as bar,
    ):
        for name in todo:
            path, part = output / name, plans[name]
            number = list(plans).index(name) + 1
            _write_shard(
                path, part, pool, bar,
                split=split, partition=number, partitions=len(plans),
                codec=annotation_codec, table=table,
            )  # fmt: skip
            entries[name] = {
                "file": name,
                "split": split,
                "partition": number,
                "partitions": len(plans),
                "annotation_codec": annotation_codec,
                "size": path.stat().st_size,
                "sha256": _sha256(path),
                "sources": _fingerprint(part),
                "images": [source.file_name for source in part],
            }
            _write_index(output, entries, table)
    return [output / name for name in plans]


def verify_shards(
    sources: Sequence[Source], output: str | Path, *, split: str, progress: bool = False
) -> None:
    """Compare the shards of a split with their checksums and, record by record, with the sources.

    Raises:
        ShardError: the first difference, naming the shard and the image.
    """
    output = Path(output)
    for entry in read_index(output)["shards"]:
        if entry["split"] == split and _sha256(output / entry["file"]) != entry["sha256"]:
            raise ShardError(
                f"{output / entry['file']}: SHA-256 differs from {INDEX_NAME}; delete it"
            )
    reader = ShardReader(output, split=split)
    if reader.file_names != [source.file_name for source in sources]:
        raise ShardError(
            f"{output}: the shards of split {split!r} hold other images than the source"
        )
    for i, source in enumerate(tqdm(sources, desc=f"verifying {split}", disable=not progress)):
        record = reader[i]
        same_image = np.array_equal(record.image.numpy(), source.image().transpose(2, 0, 1))
        if not same_image or not np.array_equal(record.instance_ids.numpy(), source.instance_ids()):
            raise ShardError(f"{reader.source(i)[0]}: {source.file_name} differs from its source")


def _plan(sources: Sequence[Source], split: str, partitions: int) -> dict[str, list[Source]]:
    """Shard name -> its contiguous part of the sources; the first parts take the remainder."""
    count = max(1, min(partitions, len(sources)))
    bounds = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(len(sources)), count)])
    return {
        f"{split}_{k + 1:02d}of{count:02d}.safetensors": list(sources[bounds[k] : bounds[k + 1]])
        for k in range(count)
    }


def _existing_entries(output: Path) -> dict[str, dict]:
    if not (output / INDEX_NAME).exists():
        return {}
    return {entry["file"]: entry for entry in read_index(output)["shards"]}


def _is_done(
    output: Path, entries: dict[str, dict], name: str, part: Sequence[Source], codec: str
) -> bool:
    entry, path = entries.get(name), output / name
    if entry is None:
        return False
    if not path.exists() or path.stat().st_size != entry["size"]:
        del entries[name]  # the file is gone or damaged: write it anew
        return False
    return entry["sources"] == _fingerprint(part) and entry["annotation_codec"] == codec


def _fingerprint(part: Sequence[Source]) -> str:
    return hashlib.sha256(
        json.dumps([[s.file_name, s.fingerprint] for s in part]).encode()
    ).hexdigest()


def _check_room(output: Path, sources: Sequence[Source], codec: str) -> None:
    pixels = sum(height * width for height, width in (s.size for s in sources))
    needed = pixels * (5 if codec == "raw" else 3) + pixels // 20
    existing = next(p for p in (output.absolute(), *output.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ShardError(
            f"{output}: needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free"
        )


def _write_shard(
    path: Path,
    sources: Sequence[Source],
    pool: ProcessPoolExecutor,
    bar: tqdm,
    *,
    split: str,
    partition: int,
    partitions: int,
    codec: str,
    table: LabelTable,
) -> None:
    height, width = sources[0].size
    annotate = partial(_annotate, codec=codec, table=table)
    blobs, tables = zip(*_map_in_order(pool, annotate, sources), strict=True)
    columns = {
        "instance_offsets": _offsets([len(t) for t in tables]),
        "instance_areas": np.concatenate([t.areas for t in tables]),
        "instance_ids": np.concatenate([t.ids for t in tables]),
        "instance_boxes": np.concatenate([t.boxes for t in tables]),
        "instance_classes": np.concatenate([t.classes for t in tables]),
        "instance_crowd": np.concatenate([t.crowd for t in tables]),
    }
    annotations = np.frombuffer(b"".join(blobs), dtype=np.uint8)
    if codec == "raw":
        columns["annotations"] = annotations.view(np.uint16).reshape(len(sources), height, width)
    else:
        columns["blob_offsets"] = _offsets([len(blob) for blob in blobs])
        columns["annotation_blob"] = annotations
    # wide types first keeps every tensor aligned; the images, last, are streamed
    columns = dict(sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize))
    metadata = {
        "version": FORMAT_VERSION,
        "split": split,
        "partition": str(partition),
        "partitions": str(partitions),
        "label_table": table.name,
        "label_table_hash": table.hash,
        "classes": json.dumps([c.name for c in table.classes]),
        "file_names": json.dumps([source.file_name for source in sources]),
    }
    shape = (len(sources), 3, height, width)

    def content() -> Iterator[bytes]:
        yield _header(columns, shape, metadata)
        for array in columns.values():
            yield array.tobytes()
        for image in _map_in_order(pool, _load_image, sources):
            yield image.tobytes()
            bar.update()

    write_atomically(path, content())


def _header(
    columns: dict[str, np.ndarray], images_shape: tuple[int, ...], metadata: dict[str, str]
) -> bytes:
    """The length-prefixed JSON header of a safetensors file, padded to 8 bytes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    position = 0
    layout = [(name, array.dtype.name, array.shape) for name, array in columns.items()]
    for name, dtype, shape in [*layout, ("images", "uint8", images_shape)]:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[dtype],
            "shape": list(shape),
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int64)


def _annotate(source: Source, *, codec: str, table: LabelTable) -> tuple[bytes, InstanceTable]:
    ids = source.instance_ids()
    if ids.shape != source.size:
        raise ShardError(f"{source.file_name}: id map of {ids.shape}, image of {source.size}")
    unknown = table.unknown_ids(ids)
    if unknown:
        raise ShardError(
            f"{source.file_name}: ids {unknown[:5]} are not in the {table.name} label table"
        )
    raw = ids.astype("<u2").tobytes()
    if codec == "zstd":
        compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True)
        return compressor.compress(raw), find_instances(ids, table)
    return raw, find_instances(ids, table)


def _load_image(source: Source) -> np.ndarray:
    image = source.image()
    if image.shape != (*source.size, 3) or image.dtype != np.uint8:
        raise ShardError(
            f"{source.file_name}: {image.dtype} image of {image.shape}, expected uint8 RGB"
        )
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _map_in_order(
    pool: ProcessPoolExecutor, function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Iterator[_Result]:
    """Like ``pool.map``, with a bounded number of results waiting to be taken."""
    waiting: deque[Future[_Result]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= 16:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _write_index(output: Path, entries: dict[str, dict], table: LabelTable) -> None:
    index = {
        "version": FORMAT_VERSION,
        "label_table": table.name,
        "label_table_hash": table.hash,
        "shards": [entries[name] for name in sorted(entries)],
    }
    write_atomically(output / INDEX_NAME, [json.dumps(index, indent=1).encode()])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
