"""The official folder tree of the Indian Driving Dataset (IDD) as sources for shards.

Annotations are polygons. Their instance ids at level 3 of the label hierarchy are drawn here, by
the rules of the dataset's own createLabels.py: later polygons over earlier ones, each polygon of a
label with instances is the next instance of its class, "cargroup" and the like are group regions;
polygons of fewer than two points and labels that it does not know are passed over, and counted.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from d2_cityscapes.labels import INSTANCE_DIVISOR
from d2_cityscapes.labels.idd import IDD_LABELS, IddLabel
from d2_cityscapes.sources.check import Size, check_limit
from d2_cityscapes.sources.errors import SourceError, document_errors, load_document
from d2_cityscapes.sources.listing import by_name, list_files
from d2_cityscapes.sources.names import IMAGE_FOLDER, PICTURES
from d2_cityscapes.sources.photo import PhotoSource
from d2_cityscapes.sources.points import near_points

__all__ = [
    "DEFAULT_CANVAS",
    "DEFAULT_PARTITIONS",
    "IddSource",
    "draw_polygons",
    "find_splits",
]

DEFAULT_CANVAS = (1080, 1920)  # holds 1080p and 720p images as they are
DEFAULT_PARTITIONS = {"train": 8, "val": 4}
_IMAGE_SUFFIX = f"_{IMAGE_FOLDER}"
_POLYGONS_END = "_gtFine_polygons"


class IddSource(PhotoSource):
    """An image and its ``*_gtFine_polygons.json``."""

    def read_annotation(self) -> np.ndarray:
        """(H, W) int32 instance ids."""
        objects, size = self._read()
        self.check_shape(size)  # before memory is taken for it
        with self._errors():
            return draw_polygons(objects, size)

    def skipped(self) -> Counter[str]:
        """What is not drawn, and how often."""
        objects, _ = self._read()
        with self._errors():
            return Counter(reason for _, reason in _judged(objects) if reason)

    def _read(self) -> tuple[list[dict[str, Any]], Size]:
        with self._errors():
            document = load_document(self.annotation_path)
            size = document["imgHeight"], document["imgWidth"]
            if not all(type(side) is int for side in size):
                raise TypeError(f"imgHeight {size[0]!r}, imgWidth {size[1]!r}")
            return document["objects"], size

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return document_errors(self.annotation_path, "a file of polygons")


def draw_polygons(objects: Sequence[dict[str, Any]], size: Size) -> np.ndarray:
    """(H, W) int32 instance ids of polygons in drawing order; 0 where there is none.

    Deleted objects, those of fewer than two points and those of unknown labels are passed over, and
    are no instances.

    Args:
        objects: each with "label", "polygon" (a list of x, y in pixels) and perhaps "deleted".
        size: (H, W).

    Raises:
        SourceError: more instances of a class than ids can tell apart, or points far outside.
    """
    picture = Image.new("I", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(picture)
    counts: Counter[int] = Counter()
    for item, reason in _judged(objects):
        name = item["label"]
        label = _label(name)
        if item.get("deleted") or reason or label is None:
            continue
        value = label.label_id
        if label.has_instances and name in IDD_LABELS:
            if counts[value] == INSTANCE_DIVISOR:
                raise SourceError(
                    f"more than {INSTANCE_DIVISOR} instances of {name}, which instance ids cannot "
                    "tell apart; leave some out"
                )
            counts[value] += 1
            value = value * INSTANCE_DIVISOR + counts[value] - 1
        pen.polygon(near_points(item["polygon"], f"a polygon of {name}"), fill=value)
    return np.asarray(picture)


def _judged(objects: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each object, and why it is passed over as createLabels.py does; "" where it is not.

    Deleted objects are none in the first place.
    """
    for item in objects:
        name = item["label"]
        if item.get("deleted"):
            yield item, ""
        elif len(item["polygon"]) < 2:
            yield item, "objects of fewer than 2 points"
        elif _label(name) is None:
            yield item, f"objects of the unknown label {name[:40]!r}"
        else:
            yield item, ""


def _label(name: str) -> IddLabel | None:
    return IDD_LABELS.get(name) or IDD_LABELS.get(name.removesuffix("group"))


class _Frame(NamedTuple):
    """An image of a drive; drives are numbered."""

    length: int  # of the drive's name, so that 10 comes after 9
    drive: str
    name: str


def find_splits(
    root: str | Path,
    splits: Sequence[str],
    *,
    canvas: Size = DEFAULT_CANVAS,
    limit: int | None = None,
) -> dict[str, list[IddSource]]:
    """The annotated images of splits, sorted by drive and name.

    Looks for ``leftImg8bit/SPLIT/DRIVE/*_leftImg8bit.png`` (or .jpg) and
    ``gtFine/SPLIT/DRIVE/*_gtFine_polygons.json``. Where one of the two is missing, the source is
    listed all the same, and says so when it is checked. Names repeat between drives, so those of
    sources begin with the drive, as in the official panoptic files: 0_024541_leftImg8bit.png.

    Args:
        root: the folder of leftImg8bit.
        splits: "train" and "val".
        canvas: (H, W); larger images are shrunk.
        limit: only the first so many of each split.

    Raises:
        SourceError: another split, or no images or no polygons at all.
    """
    check_limit(limit)
    return {split: _find_split(Path(root), split, canvas)[:limit] for split in splits}


def _find_split(root: Path, split: str, canvas: Size) -> list[IddSource]:
    if split not in DEFAULT_PARTITIONS:
        raise SourceError(f"split {split!r}; IDD has {', '.join(DEFAULT_PARTITIONS)}")
    images, polygons = root / IMAGE_FOLDER / split, root / "gtFine" / split
    # part I of the dataset has PNGs, part II JPEGs
    photos = by_name(list_files(images, "*/*", _IMAGE_SUFFIX, PICTURES), _frame)
    annotations = by_name(list_files(polygons, "*/*", _POLYGONS_END, (".json",)), _frame)
    for found, folder, name in (
        (photos, images, f"{_IMAGE_SUFFIX}.png"),
        (annotations, polygons, f"{_POLYGONS_END}.json"),
    ):
        if not found:
            raise SourceError(
                f"{folder}: no */*{name}; expected the IDD root with leftImg8bit/ and gtFine/ "
                "(see datasets/README.md)"
            )
    sources = []
    for frame in sorted({*photos, *annotations}):
        folder = Path(frame.drive)
        photo = photos.get(frame, images / folder / f"{frame.name}{_IMAGE_SUFFIX}.png")
        polygon = annotations.get(frame, polygons / folder / f"{frame.name}{_POLYGONS_END}.json")
        sources.append(IddSource(photo, polygon, f"{frame.drive}_{photo.name}", canvas))
    return sources


def _frame(path: Path) -> _Frame:
    drive, name = path.parent.name, path.stem
    return _Frame(len(drive), drive, name.removesuffix(_IMAGE_SUFFIX).removesuffix(_POLYGONS_END))
