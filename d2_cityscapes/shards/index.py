"""The list of a folder's shards, ``index.json``, and how the shards themselves can restore it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_sha256, write_json
from d2_cityscapes.labels import LABEL_TABLES, LabelTable
from d2_cityscapes.labels.table import LabelTableError
from d2_cityscapes.labels.table_file import read_table, write_table
from d2_cityscapes.shards.file import FORMAT_VERSION, ShardError, ShardFile
from d2_cityscapes.shards.reader import INDEX_NAME, TABLE_NAME, read_index
from d2_cityscapes.sources.check import Source, own_size

__all__ = [
    "fingerprint",
    "index_entry",
    "load_entries",
    "shard_metadata",
    "write_classes",
    "write_index",
]

logger = logging.getLogger(__name__)


def shard_metadata(
    sources: Sequence[Source],
    *,
    split: str,
    partition: int,
    partitions: int,
    image_size: tuple[int, int],
    annotation_codec: str,
    image_codec: str,
    table: LabelTable,
) -> dict[str, str]:
    """The texts in the header of a shard: all that its index entry needs, and the sizes of images
    that may be smaller than their canvas, `image_size`."""
    sizes = [own_size(source, image_size) for source in sources]
    own = {"sizes": json.dumps(sizes)} if any(size != image_size for size in sizes) else {}
    return {
        "version": FORMAT_VERSION,
        "split": split,
        "partition": str(partition),
        "partitions": str(partitions),
        "image_size": json.dumps(image_size),
        "annotation_codec": annotation_codec,
        "image_codec": image_codec,
        "label_table": table.name,
        "label_table_hash": table.hash,
        "classes": json.dumps([c.name for c in table.classes]),
        "sources": fingerprint(sources),
        "file_names": json.dumps([source.file_name for source in sources]),
        **own,
    }


def index_entry(path: Path, metadata: dict[str, str], digest: str) -> dict[str, Any]:
    """The entry of a shard in ``index.json``.

    Args:
        path: the file.
        metadata: its texts.
        digest: its SHA-256.
    """
    return {
        "file": path.name,
        "split": metadata["split"],
        "partition": int(metadata["partition"]),
        "partitions": int(metadata["partitions"]),
        "image_size": json.loads(metadata["image_size"]),
        "annotation_codec": metadata["annotation_codec"],
        "image_codec": metadata["image_codec"],
        "size": path.stat().st_size,
        "sha256": digest,
        "sources": metadata["sources"],
        "images": json.loads(metadata["file_names"]),
    }


def load_entries(
    output: Path, splits: Collection[str], table: LabelTable
) -> tuple[dict[str, dict[str, Any]], bool]:
    """File name -> entry of every shard that is there.

    A shard without an entry, because its writer was killed in between or the index is lost, gets
    one. A file of the given splits that is missing, damaged or of another size than its entry says
    has none and is to be written anew.

    Args:
        output: the folder.
        splits: look at the files of these; entries of others are kept as they are.
        table: the classes.

    Returns:
        The entries, and whether they differ from ``index.json``.

    Raises:
        ShardError: the folder has shards of another label table, or index.json is something else.
    """
    index: dict[str, Any] = {}
    try:
        index = read_index(output)
        known = {entry["file"]: entry for entry in index["shards"]}
        entries = {name: entry for name, entry in known.items() if entry["split"] not in splits}
    except ShardError as error:
        if (output / INDEX_NAME).exists() and not any(output.glob("*.safetensors")):
            raise ShardError(
                f"{output / INDEX_NAME}: no index of shards, and none are beside it; name another "
                "folder, or delete it"
            ) from error
        known, entries = {}, {}
    if known and index.get("label_table_hash", table.hash) != table.hash:
        other = f"not {table.name}"
        if index["label_table"] == table.name:
            other = "with other classes than those at hand"
        raise ShardError(
            f"{output}: holds shards of the label table {index['label_table']}, {other}; "
            "name another folder"
        )
    for path in sorted(output.glob("*.safetensors")):
        if path.name in entries:
            continue
        entry = known.get(path.name)
        if entry is None or entry["size"] != path.stat().st_size:
            entry = _adopt(path, table)
        if entry is not None:
            entries[path.name] = entry
    return entries, entries != known


def write_index(output: Path, entries: dict[str, dict[str, Any]], table: LabelTable) -> None:
    """Write ``index.json``, whole or not at all."""
    index = {
        "version": FORMAT_VERSION,
        "label_table": table.name,
        "label_table_hash": table.hash,
        "shards": [entries[name] for name in sorted(entries)],
    }
    write_json(output / INDEX_NAME, index)


def fingerprint(sources: Sequence[Source], *, earlier: bool = False) -> str:
    """One text for the names and fingerprints of a shard's sources; "" if one is unreadable.

    Args:
        sources: of the shard.
        earlier: in the form that shards hold that were made before sources had the one of today.
    """
    try:
        rows = [[s.file_name, _earlier(s) if earlier else s.fingerprint] for s in sources]
    except D2CityscapesError:
        return ""
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _earlier(source: Source) -> str:
    if hasattr(source, "earlier_fingerprint"):
        return source.earlier_fingerprint
    return source.fingerprint


def _adopt(path: Path, table: LabelTable) -> dict[str, Any] | None:
    try:
        return index_entry(path, ShardFile(path, table).metadata, file_sha256(path))
    except ShardError:
        return None


def write_classes(output: Path, table: LabelTable) -> None:
    """Write ``classes.yaml`` into a folder of shards, unless the classes are built-in ones.

    A file that says these classes already, in other colours perhaps, stays as it is.
    """
    path = output / TABLE_NAME
    if any(table.hash == built_in.hash for built_in in LABEL_TABLES.values()):
        return
    with contextlib.suppress(LabelTableError):  # none, or a damaged one
        if read_table(path).hash == table.hash:
            return
    try:
        write_table(path, table)
    except LabelTableError as error:
        logger.warning("%s: not written, so that these shards are for Python only: %s", path, error)
