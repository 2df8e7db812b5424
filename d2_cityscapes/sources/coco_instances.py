"""COCO's JSON of objects, as COCO, CVAT, Roboflow, Label Studio and labelme2coco write it.

Outlines are polygons of one part or several, or run lengths, compressed or not, and become pixels
as in the COCO API. Of objects that overlap, the one that stands later in the file lies on top.
``iscrowd`` makes a group region. Categories are things, but where the file says ``isthing`` 0.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import itertools
import logging
import posixpath
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from d2_cityscapes.files import file_below
from d2_cityscapes.labels import INSTANCE_DIVISOR
from d2_cityscapes.labels.table import MOST_THINGS
from d2_cityscapes.labels.table_file import ClassEntry, as_color
from d2_cityscapes.sources.check import Size
from d2_cityscapes.sources.errors import SourceError, document_errors, load_document
from d2_cityscapes.sources.objects import VOID_LABELS, Annotations, ObjectSource, Scene, Shape
from d2_cityscapes.sources.points import near_points

__all__ = ["CocoSource", "read_coco_instances"]

logger = logging.getLogger(__name__)

_KIND = "a COCO JSON of objects"
_THIN = "outlines of fewer than 3 points"
_NOTHING = "objects without outline"
_LONGEST_NUMBER = 7  # letters of a run length, 5 bits each


@dataclass(frozen=True)
class CocoSource(ObjectSource):
    """A picture with its objects; what is drawn is a list of polygons, or a dict of run lengths."""

    def draw(self, size: Size) -> np.ndarray:
        """(H, W) int32 instance ids."""
        by_column = np.full(size[0] * size[1], self.background, dtype=np.int32)
        for instance_id, drawn in self.shapes:
            counts = _counts(drawn, size) if isinstance(drawn, dict) else _polygons(drawn, size)
            edges = [*itertools.accumulate(counts)]
            for begin, end in zip(edges[::2], edges[1::2], strict=False):
                by_column[begin:end] = instance_id
        return np.ascontiguousarray(by_column.reshape(size[::-1]).T)


def read_coco_instances(
    json_path: Path, images: Path, *, boxes: bool = False, crowd: str | None = None
) -> Annotations:
    """The pictures, classes and objects of a COCO JSON.

    A category that no annotation has, and that others name as their supercategory, is no class:
    Roboflow puts one in front, at times of the same name.

    Args:
        json_path: the file.
        images: the folder that its file names begin in.
        boxes: objects with a box and no outline become that rectangle; else they are refused.
        crowd: what ``iscrowd`` makes of an object, "group" or "object"; None for "group", and to
            refuse a file that says it of most. CVAT does, of every mask that was drawn by brush.

    Raises:
        SourceError: another kind of file, annotations of unknown images or categories, two images
            of one file, names that lead out of the folder, or none of the pictures there.
    """
    with document_errors(json_path, _KIND):
        document = load_document(json_path)
        entries = _by_id(document["images"], "image")
        categories = _by_id(document["categories"], "category")
        paths = {number: _path(entry, images) for number, entry in entries.items()}
        path, times = next(iter(Counter(paths.values()).most_common(1)), ("", 0))
        if times > 1:
            raise SourceError(f"{times} images of the file {path}; keep one of them")
        if not paths:
            raise SourceError("lists no images")
        if not any((images / path).exists() for path in paths.values()):
            first = next(iter(paths.values()))
            raise SourceError(
                f"none of its {len(paths)} images is in {images}, where {first} should be; give "
                "--images the folder that the file names begin in"
            )
        annotations = document["annotations"]
        crowds = crowd != "object" and _has_crowds(annotations, asked=crowd is None)
        shapes, skipped = _shapes(annotations, paths, categories, boxes=boxes, crowds=crowds)
        scenes = tuple(
            Scene(
                image=path,
                where=f"{json_path}: image {path}",
                annotation_path=json_path,
                size=_size(entries[number], path),
                shapes=tuple(shapes[number]),
                skipped=skipped[number],
            )
            for number, path in paths.items()
        )
        used = {annotation["category_id"] for annotation in annotations}
        classes = _classes([*categories.values()], used, json_path)
    return Annotations(json_path, images, scenes, classes, CocoSource)


def _by_id(entries: Sequence[Mapping[str, Any]], what: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        number = entry["id"]
        if type(number) not in (int, str):
            raise SourceError(f"{what} id {str(number)[:40]!r} is neither a number nor a text")
        if found.setdefault(number, entry) is not entry:
            raise SourceError(f"{what} {number} is listed twice")
    return found


def _path(entry: Mapping[str, Any], images: Path) -> str:
    name = entry["file_name"]
    if not isinstance(name, str):
        raise SourceError(f"image {entry['id']}: file_name {str(name)[:40]!r} is no text")
    path = posixpath.normpath(name.replace("\\", "/"))  # as Windows writes it
    file_below(images, path)
    return path


def _size(entry: Mapping[str, Any], path: str) -> Size:
    size = entry["height"], entry["width"]
    if not all(type(side) is int for side in size):
        raise SourceError(f"image {path}: height {size[0]!r}, width {size[1]!r}")
    return size


def _shapes(
    annotations: Sequence[Mapping[str, Any]],
    paths: Mapping[Any, str],
    categories: Mapping[Any, Mapping[str, Any]],
    *,
    boxes: bool,
    crowds: bool,
) -> tuple[dict[Any, list[Shape]], dict[Any, Counter[str]]]:
    """Of each image by its id: shapes in the order of the file, and what is passed over."""
    shapes: dict[Any, list[Shape]] = {number: [] for number in paths}
    skipped: dict[Any, Counter[str]] = {number: Counter() for number in paths}
    boxed: list[str] = []
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        where = f"annotation {annotation.get('id')}"
        if image not in paths:
            raise SourceError(f"{where} is of image {image!r}, which is not listed")
        if category not in categories:
            raise SourceError(f"{where} has the category {category!r}, which is not listed")
        outline, thin = _outline(annotation.get("segmentation"))
        if thin:
            skipped[image][_THIN] += thin
        elif not outline and (box := annotation.get("bbox")):
            boxed.append(f"{where} of image {paths[image]}")
            outline = [_corners(box)]
        elif not outline:
            skipped[image][_NOTHING] += 1
        if outline:
            name = categories[category]["name"]
            label = None if name in VOID_LABELS else name
            group = crowds and _is_crowd(annotation)
            shapes[image].append(Shape(label, len(shapes[image]), group, outline))
    if boxed and not boxes:
        raise SourceError(
            f"{len(boxed)} objects have a box and no outline, {boxed[0]} first; --boxes takes "
            "their boxes for them"
        )
    return shapes, skipped


def _is_crowd(annotation: Mapping[str, Any]) -> bool:
    return annotation.get("iscrowd", 0) in (1, True)


def _has_crowds(annotations: Sequence[Mapping[str, Any]], *, asked: bool) -> bool:
    """Whether there are group regions; that most objects are such is asked about."""
    number = sum(map(_is_crowd, annotations))
    if asked and 2 * number > len(annotations):
        raise SourceError(
            f"{number} of {len(annotations)} objects have iscrowd 1, and group regions never "
            "train; CVAT says so of every mask drawn by brush: --crowd object takes them for "
            "objects, --crowd group as they are"
        )
    return number > 0


def _outline(segmentation: Any) -> tuple[Any, int]:
    """What is drawn: polygons of 3 points or more, or run lengths; and how many are thinner."""
    if not segmentation or isinstance(segmentation, dict):
        return segmentation, 0
    if not isinstance(segmentation, list):
        raise SourceError(f"segmentation {str(segmentation)[:40]!r}")
    parts = [segmentation] if isinstance(segmentation[0], int | float) else segmentation
    kept = [part for part in parts if len(part) >= 6]
    return kept, len(parts) - len(kept)


def _corners(box: Sequence[float]) -> list[float]:
    """The polygon of a box, as COCO's own."""
    x, y, w, h = box
    return [x, y, x, y + h, x + w, y + h, x + w, y]


def _classes(
    entries: Sequence[Mapping[str, Any]], used: Collection[Any], json_path: Path
) -> tuple[ClassEntry, ...]:
    """The labels in the order of the file. Category ids stay where label ids can be so.

    Args:
        entries: the categories.
        used: the ids of those that objects have.
        json_path: of the file, for the log.
    """
    for entry in entries:
        if not isinstance(entry["name"], str):
            raise SourceError(f"category {entry['id']}: name {str(entry['name'])[:40]!r}")
    above = [
        entry
        for entry in entries
        if entry["id"] not in used
        and any(o.get("supercategory") == entry["name"] for o in entries if o is not entry)
    ]
    for entry in above:
        logger.warning(
            "%s: category %s, %s, is no class: it is the supercategory of others, and no object "
            "has it",
            json_path,
            entry["id"],
            entry["name"],
        )
    kept = [e for e in entries if e not in above and e["name"] not in VOID_LABELS]
    fit = all(_fits(entry) for entry in kept)
    return tuple(
        ClassEntry(
            entry["name"],
            entry["id"] if fit else None,
            as_color(entry.get("color"), f"category {entry['name']}"),
            thing=bool(entry.get("isthing", 1)),
        )
        for entry in kept
    )


def _fits(entry: Mapping[str, Any]) -> bool:
    largest = MOST_THINGS if entry.get("isthing", 1) else INSTANCE_DIVISOR - 1
    return type(entry["id"]) is int and 1 <= entry["id"] <= largest


def _polygons(parts: Sequence[Sequence[float]], size: Size) -> list[int]:
    """The run lengths, column by column, of polygons with x and y in turns: the API's own."""
    for part in parts:
        near_points([*zip(part[::2], part[1::2], strict=True)], "a polygon")
    mask = mask_api.merge(mask_api.frPyObjects([list(part) for part in parts], *size))
    return _decompressed(mask["counts"].decode())


def _counts(segmentation: Mapping[str, Any], size: Size) -> Sequence[int]:
    """Checked run lengths: the API takes any, and writes where they lead it."""
    if segmentation["size"] != list(size):
        raise SourceError(f"run lengths of {segmentation['size']}, image of {size} (H, W)")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = _decompressed(counts)
    if not all(type(count) is int and count >= 0 for count in counts):
        raise SourceError("run lengths that are no numbers from 0 on")
    if sum(counts) != size[0] * size[1]:
        raise SourceError(f"run lengths of {sum(counts)} pixels in all, image of {size} (H, W)")
    return counts


def _decompressed(text: str) -> list[int]:
    """The numbers of COCO's compressed run lengths: 5 bits a letter, from the third one on as the
    difference to the one before the last."""
    counts: list[int] = []
    value = bits = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or bits >= 5 * _LONGEST_NUMBER:
            raise SourceError(f"compressed run lengths with {letter!r}, which they cannot have")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:  # negative
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise SourceError("compressed run lengths that end within a number")
    return counts
