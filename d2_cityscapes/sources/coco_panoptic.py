"""COCO panoptic files: an RGB PNG for each image, and a JSON that lists the segments of all.

The form of cityscapesscripts' createPanopticImgs, of panopticapi and of Detectron2's evaluator. The
id of a segment is R + 256 G + 65536 B of its pixels, 0 is void.

Shape letters: H, W pixels; R runs of pixels with equal ids; S segments of one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from d2_cityscapes.files import file_below
from d2_cityscapes.labels import CITYSCAPES, INSTANCE_DIVISOR, LabelClass, LabelTable
from d2_cityscapes.png import RGB, read_png
from d2_cityscapes.sources.errors import SourceError, document_errors, load_document

__all__ = ["CocoPng", "read_coco_panoptic"]

_PLACES = np.array([1, 256, 256 * 256])
_MOST_SEGMENTS = 256**3  # ids that a colour can say


@dataclass(frozen=True)
class CocoPng:
    """The PNG of one image with the instance ids of its segments.

    Attributes:
        path: the RGB PNG.
        segment_ids: S ascending segment ids, the first of them 0.
        instance_ids: S instance ids, the first of them 0.
    """

    path: Path
    segment_ids: tuple[int, ...]
    instance_ids: tuple[int, ...]

    @property
    def where(self) -> str:
        return str(self.path)

    def read(self) -> np.ndarray:
        """(H, W) uint16 instance ids."""
        picture = read_png(self.path, RGB)
        colors = picture.reshape(-1, 3)
        flat = colors.reshape(-1)
        changed_bytes = np.flatnonzero(flat[3:] != flat[:-3])
        starts = np.append(0, np.unique(changed_bytes // 3) + 1)  # (R,)
        runs = colors[starts] @ _PLACES

        known = np.array(self.segment_ids)
        segments = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        seen = np.bincount(segments, minlength=len(known)) > 0
        seen[0] = True
        self._check(runs[known[segments] != runs], known[~seen])
        ids = np.array(self.instance_ids, dtype=np.uint16)[segments]
        return np.repeat(ids, np.diff(starts, append=len(colors))).reshape(picture.shape[:2])

    def _check(self, unlisted: np.ndarray, unseen: np.ndarray) -> None:
        for ids, problem in (
            (unlisted, "which the JSON does not list"),
            (unseen, "of the JSON has no pixel"),
        ):
            if ids.size:
                raise SourceError(f"{self.path}: segment {ids.min()} {problem}")


def read_coco_panoptic(
    json_path: Path,
    *,
    groups: bool,
    categories: Mapping[int, LabelClass] | None = None,
    table: LabelTable = CITYSCAPES,
    merge: bool = False,
) -> tuple[dict[str, CocoPng], dict[int, LabelClass]]:
    """The images of a COCO panoptic JSON, whose PNGs lie in the folder of the same name, or, where
    there is none, beside it, as in Mapillary Vistas.

    Args:
        json_path: NAME.json, beside the folder NAME or the PNGs.
        groups: whether ``iscrowd`` counts, as in the truth. The official tools do not look at it in
            a prediction: every segment is one.
        categories: category id -> class, where the JSON has no categories of its own; None for
            label ids.
        table: the classes. Categories are recognised by name, so their ids may be label ids or
            train ids.
        merge: make several segments of a stuff class, or several groups of a thing class, in an
            image one, and do not refuse them.

    Returns:
        ``image_id`` -> its map; category id -> class.

    Raises:
        SourceError: the files are not COCO panoptic, or hold what instance ids cannot say:
            unknown categories, two segments of a stuff class or more than 1000 of a thing class in
            an image.
    """
    folder = json_path.with_suffix("")
    if not folder.is_dir():
        if not any(json_path.parent.glob("*.png")):
            raise SourceError(f"{json_path}: no folder {folder.name}/ with its PNGs beside it")
        folder = json_path.parent
    with document_errors(json_path, "COCO panoptic"):
        document = load_document(json_path)
        if "categories" in document:
            categories = _read_categories(document["categories"], table)
        elif categories is None:
            categories = {c.label_id: c for c in table.classes}
        maps: dict[str, CocoPng] = {}
        for annotation in document["annotations"]:
            image_id = annotation["image_id"]
            if not isinstance(image_id, str):
                image_id = str(_whole(annotation, "image_id"))
            if image_id in maps:
                raise SourceError(f"image {image_id} is listed twice")
            try:
                encoded = _encode(annotation["segments_info"], categories, groups, merge)
            except SourceError as error:
                raise SourceError(f"image {image_id}: {error}") from error
            path = file_below(folder, annotation["file_name"])
            maps[image_id] = CocoPng(path, tuple(encoded), tuple(encoded.values()))
    return maps, dict(categories)


def _read_categories(entries: list[dict[str, Any]], table: LabelTable) -> dict[int, LabelClass]:
    """Category id -> class. Categories of other names may be listed as long as none is used."""
    classes = {c.name: c for c in table.classes}
    numbers = Counter(_whole(entry, "id") for entry in entries)
    if twice := [number for number, times in numbers.items() if times > 1]:
        raise SourceError(f"category {twice[0]} is listed twice")
    found = {entry["id"]: classes[entry["name"]] for entry in entries if entry["name"] in classes}
    for entry in entries:
        c = found.get(entry["id"])
        if c is not None and bool(entry.get("isthing", c.is_thing)) != c.is_thing:
            kind = "a thing" if c.is_thing else "stuff"
            raise SourceError(f"isthing of {c.name} is {entry['isthing']}, but it is {kind}")
    return found


def _encode(
    segments_info: list[dict[str, Any]],
    categories: Mapping[int, LabelClass],
    groups: bool,
    merge: bool,
) -> dict[int, int]:
    """Segment id -> instance id, in ascending order of segment id, from 0 -> 0 for void on."""
    encoded = {0: 0}
    numbers: Counter[str] = Counter()
    for segment in sorted(segments_info, key=lambda segment: _whole(segment, "id")):
        if not 0 <= segment["id"] < _MOST_SEGMENTS:
            raise SourceError(f"segment {segment['id']} cannot be the colour of a pixel")
        if segment["id"] in encoded:
            what = "is void" if segment["id"] == 0 else "is listed twice"
            raise SourceError(f"segment {segment['id']} {what}")
        c = categories.get(_whole(segment, "category_id"))
        if c is None:
            raise SourceError(
                f"segment {segment['id']} has the unknown category {segment['category_id']}"
            )
        group = c.is_thing and groups and segment.get("iscrowd", 0) == 1
        kind = f"group region of {c.name}" if group else c.name
        limit = INSTANCE_DIVISOR if c.is_thing and not group else 1
        number = 0 if merge and limit == 1 else numbers[kind]
        numbers[kind] += 1
        if number >= limit:
            raise SourceError(
                f"more than {limit} segment{'s' if limit > 1 else ''} ({kind}), which instance ids "
                "cannot tell apart; merge them"
            )
        first = c.label_id * INSTANCE_DIVISOR if limit > 1 else c.label_id
        encoded[segment["id"]] = first + number
    return encoded


def _whole(entry: Mapping[str, Any], key: str) -> int:
    value = entry[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise SourceError(f"{key} {value!r} is no whole number")
    return value
