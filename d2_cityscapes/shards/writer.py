"""Writing shards: lists of sources become safetensors files and their ``index.json``.

The same sources give the same bytes, whatever the number of workers. All sources are checked, and
the room on the disk is, before the first shard is begun. Every file is written under a temporary
name, flushed to disk and renamed, and the index is rewritten after each shard, so a killed run
leaves only whole shards and the next one continues behind them.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from d2_cityscapes.errors import first_few
from d2_cityscapes.files import lock_folder, remove_temporaries
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.shards.encoder import ANNOTATION_CODECS, encode_image, write_shard
from d2_cityscapes.shards.file import ShardError
from d2_cityscapes.shards.image_codecs import find_codec
from d2_cityscapes.shards.index import (
    fingerprint,
    index_entry,
    load_entries,
    shard_metadata,
    write_classes,
    write_index,
)
from d2_cityscapes.shards.reader import INDEX_NAME, TABLE_NAME
from d2_cityscapes.sources.check import Size, Source, check_names, check_sources
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = ["write_shards", "write_splits"]

logger = logging.getLogger(__name__)

_SAMPLES = 8  # images that are compressed to estimate the room for all
_MARGIN = 1.15  # of that estimate


@dataclass(frozen=True)
class _Part:
    """One shard to be."""

    name: str
    split: str
    partition: int  # from 1
    partitions: int
    sources: Sequence[Source]


def write_shards(
    sources: Sequence[Source],
    output: str | Path,
    *,
    split: str,
    partitions: int = 1,
    annotation_codec: str = "zstd",
    image_codec: str = "none",
    workers: int = 1,
    table: LabelTable = CITYSCAPES,
    progress: bool = False,
) -> list[Path]:
    """Pack the sources of one split; see `write_splits`.

    Returns:
        The paths of all shards of the split.
    """
    written = write_splits(
        {split: sources},
        output,
        partitions={split: partitions},
        annotation_codec=annotation_codec,
        image_codec=image_codec,
        workers=workers,
        table=table,
        progress=progress,
    )
    return written[split]


def write_splits(
    splits: Mapping[str, Sequence[Source]],
    output: str | Path,
    *,
    partitions: Mapping[str, int],
    annotation_codec: str = "zstd",
    image_codec: str = "none",
    workers: int = 1,
    table: LabelTable = CITYSCAPES,
    progress: bool = False,
) -> dict[str, list[Path]]:
    """Pack sources, in their order, into contiguous shards of nearly equal size.

    Shards that a previous call with the same sources finished are kept as they are.

    Args:
        splits: name of a split, e.g. "train" -> its images, all of one size.
        output: folder of the shards, of ``index.json`` and, where the classes are no built-in ones,
            of ``classes.yaml``; created if need be.
        partitions: split -> number of shards; fewer where there are fewer sources.
        annotation_codec: "zstd" (13 kB a map) or "raw" (plain uint16 maps, 4 MB each at 1024x2048).
        image_codec: "none" (6.3 MB an image at 1024x2048), or lossless: "zstd", "jpeg2000-ht".
        workers: processes that decode and compress.
        table: the classes; ids that it does not know are refused.
        progress: show progress bars.

    Returns:
        Split -> the paths of all its shards.

    Raises:
        SourceError: everything that is wrong with the sources, their names included.
        ShardError: shards of the same split from other sources in the folder, or too little room
            on the disk.
        D2CityscapesError: another process is packing into the folder, or the disk refused.
    """
    output = Path(output)
    _check_codecs(annotation_codec, image_codec)
    check_names(splits)
    parts = [p for split in splits for p in _plan(splits[split], split, partitions[split])]
    with worker_pool(workers) as pool, lock_folder(output) as locked:
        if locked:
            remove_temporaries(output, ("*.safetensors", INDEX_NAME, TABLE_NAME))
        entries, changed = load_entries(output, splits, table)
        todo = _pending(output, parts, entries, annotation_codec, image_codec)
        sizes = check_sources(
            {split: [s for p in todo if p.split == split for s in p.sources] for split in splits},
            pool,
            table=table,
            packed_sizes=_packed_sizes(entries, splits),
            progress=progress,
        )
        _check_room(output, todo, sizes, pool, annotation_codec, image_codec)
        write_classes(output, table)
        if changed:
            write_index(output, entries, table)
        images = sum(len(part.sources) for part in todo)
        with tqdm(
            total=images, desc="packing", unit="image", disable=not (progress and todo)
        ) as bar:
            for part in todo:
                path = output / part.name
                metadata = shard_metadata(
                    part.sources,
                    split=part.split,
                    partition=part.partition,
                    partitions=part.partitions,
                    image_size=sizes[part.split],
                    annotation_codec=annotation_codec,
                    image_codec=image_codec,
                    table=table,
                )
                digest = write_shard(
                    path,
                    part.sources,
                    pool,
                    metadata=metadata,
                    size=sizes[part.split],
                    table=table,
                    on_image=bar.update,
                )
                entries[part.name] = index_entry(path, metadata, digest)
                write_index(output, entries, table)
    return {split: [output / p.name for p in parts if p.split == split] for split in splits}


def _check_codecs(annotation_codec: str, image_codec: str) -> None:
    if annotation_codec not in ANNOTATION_CODECS:
        raise ShardError(
            f"annotation codec {annotation_codec!r}; use {' or '.join(ANNOTATION_CODECS)}"
        )
    if image_codec != "none":
        find_codec(image_codec)


def _plan(sources: Sequence[Source], split: str, partitions: int) -> list[_Part]:
    """Contiguous parts; the first ones take the remainder."""
    if partitions < 1:
        raise ShardError(f"{partitions} partitions of {split}; give 1 or more")
    if not sources:
        raise ShardError(f"no images to pack for split {split!r}")
    count = min(partitions, len(sources))
    bounds = np.cumsum([0] + [len(part) for part in np.array_split(np.arange(len(sources)), count)])
    return [
        _Part(
            f"{split}_{k + 1:02d}of{count:02d}.safetensors",
            split,
            k + 1,
            count,
            sources[bounds[k] : bounds[k + 1]],
        )
        for k in range(count)
    ]


def _pending(
    output: Path,
    parts: Sequence[_Part],
    entries: dict[str, dict[str, Any]],
    annotation_codec: str,
    image_codec: str,
) -> list[_Part]:
    """The parts that are not in the folder yet.

    Raises:
        ShardError: the folder has shards of these splits that do not belong to the parts.
    """
    todo, unsure = [], []
    stale = {
        name for name, entry in entries.items() if entry["split"] in {part.split for part in parts}
    } - {part.name for part in parts}
    for part in parts:
        entry, made_from = entries.get(part.name), fingerprint(part.sources)
        if entry is None or not made_from:  # unreadable sources are found by the check that follows
            todo.append(part)
        elif (entry["annotation_codec"], entry["image_codec"]) != (annotation_codec, image_codec):
            stale.add(part.name)
        elif entry["sources"] == made_from:
            continue
        elif entry["sources"] == fingerprint(part.sources, earlier=True):
            unsure.append(part.name)
        else:
            stale.add(part.name)
    if stale:
        raise ShardError(
            f"{output}: holds shards made from other images or settings "
            f"({', '.join(sorted(stale))}); delete them or name another folder"
        )
    if unsure:
        logger.warning(
            "%s: %s: packed by an earlier version, which kept no checksums of annotations: kept as "
            "they are; --verify finds what has been corrected since",
            output,
            first_few(unsure, 3),
        )
    return todo


def _packed_sizes(
    entries: dict[str, dict[str, Any]], splits: Mapping[str, Sequence[Source]]
) -> dict[str, list[Size]]:
    """Split -> size of each of its images that is in a shard already."""
    sizes: dict[str, list[Size]] = {split: [] for split in splits}
    for entry in entries.values():
        if entry["split"] in sizes:
            height, width = entry["image_size"]
            sizes[entry["split"]] += [(height, width)] * len(entry["images"])
    return sizes


def _check_room(
    output: Path,
    todo: Sequence[_Part],
    sizes: Mapping[str, Size],
    pool: ProcessPoolExecutor | None,
    annotation_codec: str,
    image_codec: str,
) -> None:
    needed, about = 0.0, ""
    for split in {part.split: None for part in todo}:
        sources = [source for part in todo if part.split == split for source in part.sources]
        height, width = sizes[split]
        image = 3.0 * height * width
        if image_codec != "none":
            samples = sources[:: -(-len(sources) // _SAMPLES)]
            encode = partial(encode_image, codec=image_codec, size=(height, width))
            lengths = [len(frame) for frame in map_in_order(pool, encode, samples)]
            image = _MARGIN * sum(lengths) / len(lengths)
            about = f"about (from {_SAMPLES} images a split) "
        ids = height * width * (2 if annotation_codec == "raw" else 1 / 20)
        needed += len(sources) * (image + ids)
    free = shutil.disk_usage(output).free
    if needed > free:
        raise ShardError(
            f"{output}: needs {about}{needed / 1e9:.3g} GB, the disk has {free / 1e9:.3g} GB free; "
            "make room or name another folder"
        )
