"""Photographs of any size as sources for shards.

Images of one dataset that differ in size get a common place in a shard, the canvas. One that is
larger is shrunk until it fits, keeping its shape; none is enlarged.

A JPEG is taken as viewers and label tools show it: turned as its EXIF orientation says.

Shape letters: H, W pixels of a file; h, w pixels of a record.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import LabelTable
from d2_cityscapes.png import (
    RGB,
    check_png,
    check_size,
    picture_errors,
    read_header,
    read_png,
    turn_of,
)
from d2_cityscapes.sources.check import Size, check_ids, contents, file_sizes
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.listing import missing_file

__all__ = ["PhotoSource", "fit", "photo_size"]

_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
_EXCHANGING = (  # height and width
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
_SAME_SHAPE = 0.01  # relative difference of height / width
_LARGEST_SCALE = 8  # of an annotation that was drawn on a larger picture


@dataclass(frozen=True)
class PhotoSource:
    """A photograph, JPEG or PNG, with an annotation; either may turn out to be missing or damaged.

    A dataset's own source says in `read_annotation` how the annotation is read.

    Attributes:
        image_path: the photograph.
        annotation_path: the file that holds its annotation.
        file_name: name of the image, unique within a split.
        canvas: (H, W) that the image may take.
    """

    image_path: Path
    annotation_path: Path
    file_name: str
    canvas: Size

    def read_annotation(self) -> np.ndarray:
        """(H, W) integer instance ids, of the shape of the photograph but of any size."""
        raise NotImplementedError

    @property
    def annotation_name(self) -> str:
        """What an error about the annotation begins with."""
        return str(self.annotation_path)

    @cached_property
    def size(self) -> Size:
        """(h, w) of the record."""
        return fit(photo_size(self.image_path), self.canvas)

    @property
    def fingerprint(self) -> str:
        return self._in_canvas(contents(self.image_path, self.annotation_path))

    @property
    def earlier_fingerprint(self) -> str:
        return self._in_canvas(file_sizes(self.image_path, self.annotation_path))

    def _in_canvas(self, files: str) -> str:
        return f"{files} in {self.canvas[0]}x{self.canvas[1]}"

    def image(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB."""
        picture = _read_photo(self.image_path)
        height, width = self.size
        if (picture.height, picture.width) != (height, width):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture)

    def instance_ids(self) -> np.ndarray:
        """(h, w) integer instance ids: those under the centres of the pixels."""
        ids = self.read_annotation()
        height, width = self.size
        if ids.shape == (height, width):
            return ids
        picture = Image.fromarray(ids.astype(np.int32))
        return np.asarray(picture.resize((width, height), Image.Resampling.NEAREST))

    def problems(self, table: LabelTable) -> list[str]:
        """Everything that is wrong with the two files; ids are decoded, the image is not."""
        found = []
        try:
            _check_photo(self.image_path)
        except D2CityscapesError as error:
            found.append(str(error))
        try:
            ids = self.read_annotation()
        except D2CityscapesError as error:
            return list(dict.fromkeys([*found, str(error)]))
        if not found:
            try:
                self.check_shape(ids.shape)
            except SourceError as error:
                found.append(str(error))
        unknown = check_ids(ids, ids.shape, table)
        return [*found, *(f"{self.annotation_name}: {problem}" for problem in unknown)]

    def check_shape(self, size: Size) -> None:
        """Compare (H, W) of the annotation with the header of the photograph.

        Raises:
            SourceError: another shape, or a size that no annotation has.
            D2CityscapesError: the photograph is missing or damaged.
        """
        height, width = photo_size(self.image_path)
        check_size(Path(self.annotation_name), size, error_type=SourceError)
        other_shape = abs(size[0] * width - size[1] * height) > _SAME_SHAPE * size[0] * size[1]
        if other_shape or size[0] > _LARGEST_SCALE * height:
            raise SourceError(
                f"{self.annotation_name}: annotation of {size}, image of {(height, width)} (H, W)"
            )


def fit(size: Size, canvas: Size) -> Size:
    """The largest (h, w) of the shape of `size` that is no larger than it and than `canvas`."""
    (height, width), (most_rows, most_columns) = size, canvas
    if height <= most_rows and width <= most_columns:
        return size
    if height * most_columns >= width * most_rows:  # the height is what does not fit
        return most_rows, max(1, round(width * most_rows / height))
    return max(1, round(height * most_columns / width)), most_columns


def _is_png(path: Path) -> bool:
    return path.suffix.lower() == ".png"


def photo_size(path: Path) -> Size:
    """(H, W) of the photograph as it is shown, from the header of its file."""
    if not path.exists() and not path.is_symlink():
        raise SourceError(f"{path}: missing{missing_file(path)}")
    if _is_png(path):
        return read_header(path).size
    with _errors(path), Image.open(path, formats=["JPEG"]) as picture:
        size = picture.size if turn_of(picture) in _EXCHANGING else picture.size[::-1]
    check_size(path, size, error_type=SourceError)
    return size


def _check_photo(path: Path) -> None:
    """Look at a file without decoding it: the checksums of a PNG, begin and end of a JPEG."""
    photo_size(path)
    if _is_png(path):
        check_png(path, RGB)
        return
    with _errors(path):
        _check_jpeg_end(path)


def _check_jpeg_end(path: Path) -> None:
    """OSError where a JPEG has no end. What lies behind it, as the film of a "motion photo", is
    passed over; what lies in front of the picture, as a thumbnail with an end of its own, too."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        if _JPEG_END in file.read():
            return
        file.seek(0)
        data = file.read()
    position = 2
    while data[position : position + 1] == b"\xff" and data[position : position + 2] != _JPEG_SCAN:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    if _JPEG_END not in data[position:]:
        raise OSError("truncated")


def _read_photo(path: Path) -> Image.Image:
    if _is_png(path):
        return Image.fromarray(read_png(path, RGB))
    with _errors(path), Image.open(path, formats=["JPEG"]) as picture:
        turn = turn_of(picture)
        return (picture if turn is None else picture.transpose(turn)).convert("RGB")


def _errors(path: Path) -> AbstractContextManager[None]:
    return picture_errors(path, kind="JPEG", error_type=SourceError)
