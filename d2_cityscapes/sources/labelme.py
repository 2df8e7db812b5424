"""labelme's JSON files, one beside each picture.

Polygons, rectangles, circles and masks become pixels as in labelme itself; shapes of one label and
one ``group_id`` are one object. Of shapes that overlap, the later one lies on top. Lines and points
have no area and are passed over. The picture is the file: a copy in the JSON is not looked at.
``_background_`` and ``__ignore__``, which labelme's own tools know, are void.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import base64
import io
import logging
import math
import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels.table_file import ClassEntry
from d2_cityscapes.png import check_size, picture_errors
from d2_cityscapes.sources.check import Size
from d2_cityscapes.sources.errors import SourceError, document_errors, load_document
from d2_cityscapes.sources.listing import list_files
from d2_cityscapes.sources.names import PICTURES
from d2_cityscapes.sources.objects import VOID_LABELS, Annotations, ObjectSource, Scene, Shape
from d2_cityscapes.sources.points import near_points
from d2_cityscapes.worker_pool import map_in_order, worker_pool

__all__ = ["LabelmeSource", "read_labelme"]

logger = logging.getLogger(__name__)

_POLYGONS = ("polygon", "oriented_rectangle")
_AREAS = (*_POLYGONS, "rectangle", "circle", "mask")
_NO_AREAS = ("line", "linestrip", "point", "points")


@dataclass(frozen=True)
class LabelmeSource(ObjectSource):
    """A picture with its shapes; what is drawn is (type, points, mask as text)."""

    def draw(self, size: Size) -> np.ndarray:
        """(H, W) int32 instance ids."""
        picture = Image.new("I", (size[1], size[0]), self.background)
        pen = ImageDraw.Draw(picture)
        for instance_id, (kind, points, mask) in self.shapes:
            points = near_points(points, f"a {kind}")
            ink: dict[str, Any] = {"fill": instance_id, "outline": instance_id}
            if kind in _POLYGONS:
                pen.polygon(points, **ink)
            elif kind == "rectangle":
                pen.rectangle([*map(min, *points), *map(max, *points)], **ink)
            elif kind == "circle":
                (x, y), edge = points
                radius = math.dist((x, y), edge)
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], **ink)
            else:
                (left, top), (right, bottom) = points
                stamp = _mask(mask)
                if all(float(side).is_integer() for side in (left, top, right, bottom)):
                    stamp = stamp.crop((0, 0, int(right - left) + 1, int(bottom - top) + 1))
                picture.paste(instance_id, (round(left), round(top)), stamp)
        return np.asarray(picture)


def read_labelme(folder: Path, *, workers: int = 1, progress: bool = False) -> Annotations:
    """The pictures, classes and objects of a folder of labelme's JSON files.

    All JSON files in the folder and below it are read. Labels in use are classes, by name; all of
    them are things. Pictures without a JSON are passed over, with one line that counts them.

    Args:
        folder: of pictures and JSON files.
        workers: processes that read.
        progress: show a progress bar.

    Raises:
        SourceError: no JSON at all, files of another kind, two of one picture, or pictures
            elsewhere; all of them.
    """
    folder = Path(folder)
    files = sorted(list_files(folder, "**/*", "", (".json",)))
    if not files:
        raise SourceError(f"{folder}: no *.json; expected labelme's files beside the pictures")
    scenes: dict[str, Scene] = {}
    problems = []
    read = partial(_read, folder=folder)
    with (
        worker_pool(workers) as pool,
        tqdm(total=len(files), desc="reading", unit="file", disable=not progress) as bar,
    ):
        for path, found in zip(files, map_in_order(pool, read, files), strict=True):
            bar.update()
            if isinstance(found, str):
                problems.append(found)
            elif (other := scenes.setdefault(found.image, found)) is not found:
                problems.append(f"{path}: of the same picture as {other.annotation_path}")
    if problems:
        raise SourceError.of_many(problems, "nothing was written; mend them or leave them out")
    pictures = {
        str(p.relative_to(folder).as_posix()) for p in list_files(folder, "**/*", "", PICTURES)
    }
    if alone := len(pictures - scenes.keys()):
        logger.warning("%s: passed over %d pictures without a JSON", folder, alone)
    labels = {shape.label for scene in scenes.values() for shape in scene.shapes if shape.label}
    classes = tuple(ClassEntry(label, thing=True) for label in sorted(labels))
    return Annotations(folder, folder, tuple(scenes.values()), classes, LabelmeSource)


def _read(path: Path, *, folder: Path) -> Scene | str:
    """The scene of a JSON, or what is wrong with it."""
    try:
        with document_errors(path, "a file of labelme"):
            document = load_document(path)
            skipped: Counter[str] = Counter()
            return Scene(
                image=_image(document["imagePath"], path, folder),
                where=str(path),
                annotation_path=path,
                size=_size(document.get("imageHeight"), document.get("imageWidth")),
                shapes=tuple(_shapes(document["shapes"], skipped)),
                skipped=skipped,
            )
    except D2CityscapesError as error:
        return str(error)


def _image(name: str, path: Path, folder: Path) -> str:
    """Path of the picture below the folder."""
    beside = path.relative_to(folder).parent.as_posix()
    found = posixpath.normpath(posixpath.join(beside, name.replace("\\", "/")))
    if found.startswith(("../", "/")) or not name or ":" in found:
        raise SourceError(
            f"imagePath {name[:80]!r} leads out of {folder}; put pictures and JSON files into one "
            "folder, and let imagePath say so"
        )
    return found


def _size(height: Any, width: Any) -> Size | None:
    if height is None and width is None:  # of the picture itself
        return None
    if type(height) is not int or type(width) is not int:
        raise SourceError(f"imageHeight {height!r}, imageWidth {width!r}")
    return height, width


def _shapes(entries: Sequence[Mapping[str, Any]], skipped: Counter[str]) -> list[Shape]:
    """The shapes that have an area; the others are counted."""
    shapes = []
    numbers: dict[Any, int] = {}
    for i, entry in enumerate(entries):
        label, kind = entry["label"], entry.get("shape_type") or "polygon"
        if not isinstance(label, str):
            raise SourceError(f"shape {i}: label {str(label)[:40]!r} is no text")
        points = entry["points"]
        if kind in _NO_AREAS:
            skipped["lines and points"] += 1
            continue
        if kind not in _AREAS:
            skipped[f"shapes of the unknown type {str(kind)[:40]!r}"] += 1
            continue
        if kind in _POLYGONS and len(points) < 3:
            skipped["outlines of fewer than 3 points"] += 1
            continue
        if kind not in _POLYGONS and len(points) != 2:
            raise SourceError(f"shape {i}: a {kind} of {len(points)} points; it has 2")
        group = entry.get("group_id")
        key = ("shape", i) if group is None else (label, str(group))
        number = numbers.setdefault(key, len(numbers))
        mask = entry["mask"] if kind == "mask" else None
        shapes.append(
            Shape(None if label in VOID_LABELS else label, number, False, (kind, points, mask))
        )
    return shapes


def _mask(text: str) -> Image.Image:
    """The mask of a shape, a PNG as text, one bit a pixel."""
    name = Path("the mask of a shape")
    content = io.BytesIO(base64.b64decode(text, validate=True))
    with (
        picture_errors(name, error_type=SourceError),
        Image.open(content, formats=["PNG"]) as png,
    ):
        check_size(name, png.size[::-1], error_type=SourceError)
        return Image.fromarray(np.asarray(png.convert("L")) > 0)
