"""The official folder tree of the Indian Driving Dataset (IDD) as sources for shards.

Annotations are polygons. Their instance ids at level 3 of the label hierarchy are drawn here, by
the rules of the dataset's own createLabels.py: later polygons over earlier ones, each polygon of a
label with instances is the next instance of its class, "cargroup" and the like are group regions.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import INSTANCE_DIVISOR
from d2_cityscapes.labels.idd import IDD_LABELS
from d2_cityscapes.sources.check import Size, check_limit
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.names import IMAGE_FOLDER, PICTURES
from d2_cityscapes.sources.photo import PhotoSource

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
_POLYGONS_SUFFIX = "_gtFine_polygons.json"


class IddSource(PhotoSource):
    """An image and its ``*_gtFine_polygons.json``."""

    def read_annotation(self) -> np.ndarray:
        """(H, W) int32 instance ids."""
        path = self.annotation_path
        try:
            document = json.loads(path.read_bytes())
            size = (int(document["imgHeight"]), int(document["imgWidth"]))
            return draw_polygons(document["objects"], size)
        except D2CityscapesError as error:
            raise SourceError(f"{path}: {error}") from error
        except FileNotFoundError as error:
            raise SourceError(f"{path}: missing") from error
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(f"{path}: not a file of polygons ({error!r})") from error


def draw_polygons(objects: Sequence[dict[str, Any]], size: Size) -> np.ndarray:
    """(H, W) int32 instance ids of polygons in drawing order; 0 where there is none.

    Args:
        objects: each with "label", "polygon" (a list of x, y in pixels) and perhaps "deleted".
        size: (H, W).

    Raises:
        SourceError: an unknown label, no polygon, or more instances of a class than ids can tell
            apart.
    """
    picture = Image.new("I", (size[1], size[0]), 0)
    pen = ImageDraw.Draw(picture)
    counts: Counter[int] = Counter()
    for number, item in enumerate(objects):
        if item.get("deleted"):
            continue
        name = item["label"]
        label = IDD_LABELS.get(name) or IDD_LABELS.get(name.removesuffix("group"))
        if label is None:
            raise SourceError(f"object {number} has the label {name!r}, which IDD does not have")
        value = label.label_id
        if label.has_instances and name in IDD_LABELS:
            if counts[value] == INSTANCE_DIVISOR:
                raise SourceError(
                    f"more than {INSTANCE_DIVISOR} instances of {name}, which instance ids cannot "
                    "tell apart; leave some out"
                )
            counts[value] += 1
            value = value * INSTANCE_DIVISOR + counts[value] - 1
        points = [(x, y) for x, y in item["polygon"]]
        if len(points) < 2:
            raise SourceError(f"object {number} ({name}) has a polygon of {len(points)} points")
        pen.polygon(points, fill=value)
    return np.asarray(picture)


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
    photos = {
        _frame(path, _IMAGE_SUFFIX + path.suffix): path
        for suffix in PICTURES  # part I of the dataset has PNGs, part II JPEGs
        for path in images.glob(f"*/*{_IMAGE_SUFFIX}{suffix}")
    }
    annotations = {
        _frame(path, _POLYGONS_SUFFIX): path for path in polygons.glob(f"*/*{_POLYGONS_SUFFIX}")
    }
    for found, folder, name in (
        (photos, images, f"{_IMAGE_SUFFIX}.png"),
        (annotations, polygons, _POLYGONS_SUFFIX),
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
        polygon = annotations.get(frame, polygons / folder / (frame.name + _POLYGONS_SUFFIX))
        sources.append(IddSource(photo, polygon, f"{frame.drive}_{photo.name}", canvas))
    return sources


def _frame(path: Path, suffix: str) -> _Frame:
    drive = path.parent.name
    return _Frame(len(drive), drive, path.name.removesuffix(suffix))
