"""What may stand in ``index.json`` and in the header of a shard: each checked as a whole, once.

Both may come from elsewhere. Behind these checks every value has its type and its range, every name
is that of a file inside the folder, and every size is one that memory may be taken for.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from d2_cityscapes.files import is_plain_name
from d2_cityscapes.png import MOST_PIXELS
from d2_cityscapes.sources.names import image_name

__all__ = [
    "FORMAT_VERSION",
    "TABLES",
    "Header",
    "SchemaError",
    "VersionError",
    "check_header",
    "check_index",
]

FORMAT_VERSION = "2"
# The tables that stand in the beginning of a file, in this order: dtype, dimensions.
TABLES = {
    "instance_offsets": (np.int64, 1),
    "blob_offsets": (np.int64, 1),
    "blob_crc32": (np.int64, 1),
    "image_offsets": (np.int64, 1),
    "instance_areas": (np.int64, 1),
    "instance_ids": (np.int32, 1),
    "instance_boxes": (np.int32, 2),
    "instance_classes": (np.uint8, 1),
    "instance_crowd": (np.bool_, 1),
}
_ITEM_SIZES = {"I64": 8, "I32": 4, "U16": 2, "U8": 1, "BOOL": 1}  # bytes
_MOST_INSTANCES = 1 << 16  # of an image: ids have 16 bits
_MOST_IMAGES = 10**7  # of a shard
_LARGEST = 1 << 50  # bytes
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")

Size = tuple[int, int]  # (H, W)


class SchemaError(ValueError):
    """What is wrong with an index or a header."""


class VersionError(SchemaError):
    """Another version of the format."""


class Header(NamedTuple):
    """A checked header.

    Attributes:
        metadata: its texts.
        file_names: of the N images.
        classes: names of the label table.
        canvas: (H, W) that every image takes.
        sizes: (H, W) of each image.
        shapes: shape of each tensor.
        spans: first and last byte, plus one, of each tensor behind the header.
    """

    metadata: dict[str, str]
    file_names: list[str]
    classes: list[str]
    canvas: Size
    sizes: list[Size]
    shapes: dict[str, tuple[int, ...]]
    spans: dict[str, tuple[int, int]]

    @property
    def length(self) -> int:
        """Bytes of all tensors."""
        return max(end for _, end in self.spans.values())


def check_index(document: object) -> dict[str, Any]:
    """A parsed ``index.json``, as `write_index` writes it.

    Raises:
        SchemaError: it is not.
    """
    index = _mapping(document, "the index")
    _check(index.get("version"), f"version, {FORMAT_VERSION} expected", _is(FORMAT_VERSION))
    for name in ("label_table", "label_table_hash"):
        _check(index.get(name, ""), name, _is_text)
    for shard in _sequence(index.get("shards"), "shards"):
        entry = _mapping(shard, "a shard")
        for name, is_valid in _ENTRY.items():
            _check(entry.get(name), name, is_valid)
        if not entry["file"].endswith(".safetensors") or entry["partition"] > entry["partitions"]:
            raise SchemaError(f"the shard {entry['file']} has partition {entry['partition']}")
    shards = index["shards"]
    _check_unique([entry["file"] for entry in shards], "shards of the file name")
    for split in {entry["split"] for entry in shards}:
        names = (image for entry in shards if entry["split"] == split for image in entry["images"])
        _check_unique(map(image_name, names), f"images of {split} called")
    return dict(index)


def check_header(document: object) -> Header:
    """A parsed safetensors header of a shard.

    Raises:
        SchemaError: it is none.
    """
    tensors = dict(_mapping(document, "the header"))
    metadata = _mapping(tensors.pop("__metadata__", None), "the metadata")
    version = metadata.get("version")
    if version != FORMAT_VERSION:
        raise VersionError(f"shard format version {str(version)[:40]}, not {FORMAT_VERSION}")
    for name, is_valid in _METADATA.items():
        _check(metadata.get(name), name, is_valid)
    names = _names(_parsed(metadata["file_names"]), "file_names")
    _check_unique(map(image_name, names), "images called")
    canvas = _size(_parsed(metadata["image_size"]), "image_size")
    sizes = [canvas] * len(names)
    if "sizes" in metadata:
        parsed = _sequence(_parsed(metadata["sizes"]), "sizes")
        sizes = [_size(size, "a size of sizes") for size in parsed]
    if len(sizes) != len(names) or any(h > canvas[0] or w > canvas[1] for h, w in sizes):
        raise SchemaError("the sizes of images are not those of its images")
    classes = [*_sequence(_parsed(metadata["classes"]), "classes")]
    _check(classes, "classes", lambda found: all(map(_is_text, found)))
    shapes = _check_tensors(tensors, len(names), canvas)
    spans = {name: (e["data_offsets"][0], e["data_offsets"][1]) for name, e in tensors.items()}
    return Header(dict(metadata), names, classes, canvas, sizes, shapes, spans)


def _check_tensors(
    tensors: dict[str, Any], images: int, canvas: Size
) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, which are those of a shard and lie one behind the other."""
    for name, entry in tensors.items():
        found = _mapping(entry, name)
        _check(found.get("data_offsets"), f"data_offsets of {name}", _are_counts)
        _check(found.get("shape"), f"shape of {name}", _are_counts)
    shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    (rows,) = shapes.get("instance_ids", (0,))[:1] or (0,)
    expected = _expected(shapes, images, min(rows, images * _MOST_INSTANCES), canvas)
    if {*expected} != {*tensors}:
        odd = sorted({*expected} ^ {*tensors})[0]
        raise SchemaError(f"tensor {odd[:40]} is {'missing' if odd in expected else 'unknown'}")
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = expected[name]
        if (entry.get("dtype"), shapes[name]) != (dtype, shape):
            seen = f"{name} has shape {shapes[name]} of {entry.get('dtype')}"
            raise SchemaError(f"{seen}, expected {shape} of {dtype} among {images} images")
        end = position + _ITEM_SIZES[dtype] * math.prod(shape)
        if entry["data_offsets"] != [position, end]:
            raise SchemaError(f"{name} lies at {entry['data_offsets']}, expected {[position, end]}")
        position = end
    return shapes


def _expected(
    shapes: Mapping[str, tuple[int, ...]], images: int, rows: int, canvas: Size
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor -> dtype and shape, for `rows` instances; blobs may have any length."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "instance_offsets": ("I64", (images + 1,)),
        "instance_areas": ("I64", (rows,)),
        "instance_ids": ("I32", (rows,)),
        "instance_boxes": ("I32", (rows, 4)),
        "instance_classes": ("U8", (rows,)),
        "instance_crowd": ("BOOL", (rows,)),
    }
    if "annotation_blob" in shapes:
        expected["blob_offsets"] = ("I64", (images + 1,))
        expected["blob_crc32"] = ("I64", (images,))
        expected["annotation_blob"] = ("U8", shapes["annotation_blob"][:1])
    else:
        expected["annotations"] = ("U16", (images, *canvas))
    if "image_blob" in shapes:
        expected["image_offsets"] = ("I64", (images + 1,))
        expected["image_blob"] = ("U8", shapes["image_blob"][:1])
    else:
        expected["images"] = ("U8", (images, 3, *canvas))
    return expected


def _check(value: object, name: str, is_valid: Callable[[Any], bool]) -> None:
    if not is_valid(value):
        raise SchemaError(f"{name} is {str(value)[:80]!r}")


def _mapping(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SchemaError(f"{name} is {str(value)[:80]!r}, not a mapping")
    return value


def _sequence(value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, list) or len(value) > _MOST_IMAGES:
        raise SchemaError(f"{name} is {str(value)[:80]!r}, not a list")
    return value


def _names(value: object, name: str) -> list[str]:
    names = _sequence(value, name)
    if not _are_names(names):
        odd = next((n for n in names if not is_plain_name(n)), "empty")
        raise SchemaError(f"{name}: {str(odd)[:80]!r} is not the name of a file")
    return [*names]


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{text[:80]!r} is not JSON") from error


def _size(value: object, name: str) -> Size:
    _check(value, name, _is_size)
    height, width = _sequence(value, name)
    return height, width


def _check_unique(names: Any, what: str) -> None:
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise SchemaError(f"{times} {what} {name[:80]}, so that one would stand for all")


def _is(expected: object) -> Callable[[object], bool]:
    return lambda value: value == expected


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1000 and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_number(value: object) -> bool:
    return type(value) is int and 1 <= value < 10**6


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 4 and all(map(_is_count, value))


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(is_plain_name, value))


def _is_size(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_is_number, value))
        and value[0] * value[1] <= MOST_PIXELS
    )


_ENTRY: dict[str, Callable[[Any], bool]] = {
    "file": is_plain_name,
    "split": is_plain_name,
    "partition": _is_number,
    "partitions": _is_number,
    "image_size": _is_size,
    "annotation_codec": _is_text,
    "image_codec": _is_text,
    "size": _is_count,
    "sha256": lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value)),
    "sources": _is_text,
    "images": _are_names,
}
_METADATA: dict[str, Callable[[Any], bool]] = {
    "split": is_plain_name,
    "partition": lambda value: isinstance(value, str) and bool(_NUMBER.fullmatch(value)),
    "partitions": lambda value: isinstance(value, str) and bool(_NUMBER.fullmatch(value)),
    "image_size": lambda value: isinstance(value, str),
    "annotation_codec": _is_text,
    "image_codec": _is_text,
    "label_table": _is_text,
    "label_table_hash": _is_text,
    "classes": lambda value: isinstance(value, str),
    "sources": _is_text,
    "file_names": lambda value: isinstance(value, str),
    "checksum": _is_text,
}
