"""Pictures with named objects, as annotation tools write them, as sources for shards.

A format's own module reads its files into scenes: objects by the names of their classes, in drawing
order, each of one or more shapes. Here scenes become sources: classes get their table, objects
their instance ids, pictures their canvas and split. Where objects overlap, the later one lies on
top. What is annotated nowhere is void, or of the class that is named for it.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from d2_cityscapes.errors import D2CityscapesError, first_few, nearest
from d2_cityscapes.files import file_below, is_plain_name
from d2_cityscapes.labels import INSTANCE_DIVISOR, LabelTable
from d2_cityscapes.labels.table_file import ClassEntry, make_table
from d2_cityscapes.sources.check import Size, check_limit, contents
from d2_cityscapes.sources.errors import SourceError, document_errors
from d2_cityscapes.sources.names import PICTURES
from d2_cityscapes.sources.photo import PhotoSource, photo_size

__all__ = ["TRAIN", "VAL", "VOID_LABELS", "Annotations", "Drawn", "ObjectSource", "Scene", "Shape"]

TRAIN, VAL = "train", "val"
VOID_LABELS = ("_background_", "__ignore__")  # of labelme's tools, and of what they export
_HIDDEN = "objects without a visible pixel (hidden by later ones, or outside)"


class Shape(NamedTuple):
    """A shape of an object.

    Attributes:
        label: name of its class; None for void.
        number: of the object within its image: shapes of one number are one object.
        crowd: whether it is a group region.
        drawn: what the format's source draws.
    """

    label: str | None
    number: int
    crowd: bool
    drawn: Any


@dataclass(frozen=True)
class Scene:
    """One picture.

    Attributes:
        image: its path below the folder of pictures, with "/".
        where: names it in errors about its annotation.
        annotation_path: the file that holds its annotation.
        size: (H, W) that it was annotated in; None for that of the picture.
        shapes: in drawing order.
        skipped: what is passed over, and how often.
    """

    image: str
    where: str
    annotation_path: Path
    size: Size | None
    shapes: tuple[Shape, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


class Drawn(NamedTuple):
    """A shape with its id in the map."""

    instance_id: int
    drawn: Any


@dataclass(frozen=True)
class ObjectSource(PhotoSource):
    """A picture with its objects; a format's own source says how shapes are drawn.

    Attributes:
        where: names the annotation in errors.
        annotated: (H, W) of the annotation; None for that of the picture.
        shapes: in drawing order.
        passed_over: what of the annotation is not among them, and how often.
        background: label id of what no shape covers; 0 for void.
    """

    where: str
    annotated: Size | None
    shapes: tuple[Drawn, ...]
    passed_over: tuple[tuple[str, int], ...]
    background: int

    @property
    def annotation_name(self) -> str:
        return self.where

    def draw(self, size: Size) -> np.ndarray:
        """(H, W) int32 instance ids of the shapes, later ones over earlier ones."""
        raise NotImplementedError

    def read_annotation(self) -> np.ndarray:
        """(H, W) integer instance ids."""
        size = self.annotated or photo_size(self.image_path)
        self.check_shape(size)  # before memory is taken for it
        with document_errors(self.where, "an annotation that can be drawn"):
            return self.draw(size)

    def skipped(self) -> Counter[str]:
        """What is not drawn, or not to be seen, and how often."""
        drawn = {shape.instance_id for shape in self.shapes} - {0}
        seen = np.zeros(max(drawn | {self.background}) + 1, dtype=bool)
        seen[self.read_annotation()] = True
        found = Counter(dict(self.passed_over))
        if hidden := sum(not seen[instance_id] for instance_id in drawn):
            found[_HIDDEN] = hidden
        return found

    @property
    def fingerprint(self) -> str:
        # an annotation file may hold those of many pictures: what it says of this one counts
        said = zlib.crc32(repr((self.annotated, self.shapes, self.background)).encode())
        return self._in_canvas(f"{contents(self.image_path)} {said:08x}")

    @property
    def earlier_fingerprint(self) -> str:
        return self.fingerprint  # there has been no other


@dataclass(frozen=True)
class Annotations:
    """What the files of a format say: pictures and classes.

    Attributes:
        where: the file or folder, for errors.
        images: the folder of the pictures.
        scenes: of every picture.
        classes: labels in the order of the file, or by name.
        source: the format's own source.
    """

    where: Path
    images: Path
    scenes: tuple[Scene, ...]
    classes: tuple[ClassEntry, ...]
    source: Callable[..., ObjectSource]

    def table(
        self, name: str, *, stuff: Sequence[str] = (), background: str | None = None
    ) -> LabelTable:
        """The classes of the file as a table.

        Args:
            name: of the table.
            stuff: classes without instances, beside those that the file calls so.
            background: class of what is annotated nowhere, the last one if the file has none of
                this name; None for void.

        Raises:
            D2CityscapesError: classes that are not there, or that no table can have.
        """
        names = [entry.name for entry in self.classes]
        for label in stuff:
            if label not in names:
                raise SourceError(
                    f"{self.where}: no class {label!r} to make stuff of"
                    f"{nearest(label, names) or f'; it has {first_few(names, 8)}'}"
                )
        stuff = [*stuff, *([background] if background else [])]
        entries = [e._replace(thing=e.thing and e.name not in stuff) for e in self.classes]
        if background and background not in names:
            entries.append(ClassEntry(background))
        try:
            return make_table(name, entries)
        except D2CityscapesError as error:
            raise SourceError(f"{self.where}: {error}") from error

    def splits(
        self,
        table: LabelTable,
        *,
        split: str | None = None,
        val_share: float = 0.1,
        background: str | None = None,
        canvas: Size | None = None,
        limit: int | None = None,
    ) -> dict[str, list[ObjectSource]]:
        """The sources of each split, sorted by path.

        The pictures of val are those whose names come first in the order of a checksum: the same
        ones whenever, wherever, and whatever the rest of a name's folder.

        Args:
            table: of the classes; every label in use has to be in it.
            split: all pictures are of this one; None to part them into train and val.
            val_share: the part of val then, 0 to 1.
            background: class of what is annotated nowhere; None for void.
            canvas: (H, W) room of each picture; None for that of the largest one of the split.
            limit: only the first so many of each split.

        Raises:
            SourceError: labels that the table does not have, a background that is no stuff of it,
                more than 1000 instances of a class in a picture, names that cannot be, or too few
                pictures to part.
        """
        check_limit(limit)
        self._check_labels(table)
        stuff = {c.name: c.label_id for c in table.stuff}
        if background and background not in stuff:
            raise SourceError(
                f"{self.where}: the background {background!r} is no class of stuff of the table "
                f"{table.name}{nearest(background, stuff)}; name one of them, or pack into another "
                "folder"
            )
        names = _names(self.scenes)
        chosen = sorted(self.scenes, key=lambda scene: scene.image)
        if split is not None:
            parts = {split: chosen}
        else:
            parts = _parted(chosen, names, val_share, self.where)
        return {
            part: self._sources(
                scenes[:limit], names, table, canvas, stuff.get(background or "", 0)
            )
            for part, scenes in parts.items()
        }

    def _check_labels(self, table: LabelTable) -> None:
        known = [name for _, name in table.label_names]
        used = Counter(s.label for scene in self.scenes for s in scene.shapes if s.label)
        problems = [
            f"{label!r} ({number} objects){nearest(label, known)}"
            for label, number in used.items()
            if label not in known
        ]
        if problems:
            raise SourceError(
                f"{self.where}: labels that the table {table.name} does not have: "
                f"{first_few(problems, 8)}; it has {first_few(known, 8)}: correct them, or name "
                "them in a table of your own (--classes FILE; void: true to leave a label out)"
            )

    def _sources(
        self,
        scenes: Sequence[Scene],
        names: Mapping[str, str],
        table: LabelTable,
        canvas: Size | None,
        background: int,
    ) -> list[ObjectSource]:
        paths = [file_below(self.images, scene.image) for scene in scenes]
        room = canvas or _largest(paths)
        return [
            self.source(
                path,
                scene.annotation_path,
                names[scene.image],
                room,
                scene.where,
                scene.size,
                tuple(_numbered(scene, table)),
                tuple(scene.skipped.items()),
                background,
            )
            for path, scene in zip(paths, scenes, strict=True)
        ]


def _numbered(scene: Scene, table: LabelTable) -> Iterable[Drawn]:
    """The shapes with their ids: objects of a class are numbered in the order of the file."""
    label_ids = {name: label_id for label_id, name in table.label_names}
    things = {c.label_id for c in table.things}
    numbers: dict[str, dict[int, int]] = {}  # of a class: object -> its number
    for shape in scene.shapes:
        if shape.label is None:
            yield Drawn(0, shape.drawn)
            continue
        instance_id = label_ids[shape.label]
        if instance_id in things and not shape.crowd:
            own = numbers.setdefault(shape.label, {})
            number = own.setdefault(shape.number, len(own))
            if number >= INSTANCE_DIVISOR:
                raise SourceError(
                    f"{scene.where}: more than {INSTANCE_DIVISOR} instances of {shape.label}, "
                    "which instance ids cannot tell apart; leave some out, or make them one group "
                    "region (iscrowd)"
                )
            instance_id = instance_id * INSTANCE_DIVISOR + number
        yield Drawn(instance_id, shape.drawn)


def _names(scenes: Sequence[Scene]) -> dict[str, str]:
    """Path below the folder of pictures -> name of the image.

    That is the path below the folder that all have in common, with _ for /: two pictures in two
    folders may be called alike.
    """
    paths = [scene.image.split("/") for scene in scenes]
    problems = []
    for path, scene in zip(paths, scenes, strict=True):
        if not all(map(is_plain_name, path)):
            problems.append(
                f"{scene.where}: {scene.image!r} is not the name of a file in the folder of the "
                "pictures; nothing is read elsewhere"
            )
        elif not scene.image.lower().endswith(PICTURES):
            problems.append(f"{scene.where}: {scene.image} is no JPEG or PNG by its name")
    if problems:
        raise SourceError.of_many(problems, "convert pictures, and name them in the annotation")
    above = PurePosixPath(os.path.commonpath(str(PurePosixPath(*path).parent) for path in paths))
    return {
        "/".join(path): "_".join(PurePosixPath(*path).relative_to(above).parts) for path in paths
    }


def _parted(
    scenes: Sequence[Scene], names: Mapping[str, str], val_share: float, where: Path
) -> dict[str, list[Scene]]:
    count = max(1, round(val_share * len(scenes))) if 0 < val_share < 1 else 0
    if not 0 < count < len(scenes):
        raise SourceError(
            f"{where}: {len(scenes)} pictures, a share of {val_share} for val: one of the two "
            "splits would be empty; give another share, or say which split it is (--split)"
        )
    order = sorted(names.values(), key=lambda name: (zlib.crc32(name.encode()), name))
    chosen = set(order[:count])
    parts: dict[str, list[Scene]] = {TRAIN: [], VAL: []}
    for scene in scenes:
        parts[VAL if names[scene.image] in chosen else TRAIN].append(scene)
    return parts


def _largest(paths: Iterable[Path]) -> Size:
    """The smallest canvas that holds every picture; unreadable ones are found when checked."""
    height = width = 1
    for path in paths:
        try:
            size = photo_size(path)
        except D2CityscapesError:
            continue
        height, width = max(height, size[0]), max(width, size[1])
    return height, width
