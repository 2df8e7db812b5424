"""Photographs of any size as sources for shards.

Images of one dataset that differ in size get a common place in a shard, the canvas. One that is
larger is shrunk until it fits, keeping its shape; none is enlarged.

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
from d2_cityscapes.png import RGB, check_end, check_png, picture_errors, read_header, read_png
from d2_cityscapes.sources.check import Size, check_ids, file_sizes
from d2_cityscapes.sources.errors import SourceError

__all__ = ["PhotoSource", "fit"]

_JPEG_END = b"\xff\xd9"
_SAME_SHAPE = 0.01  # relative difference of height / width


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

    @cached_property
    def size(self) -> Size:
        """(h, w) of the record."""
        return fit(_photo_size(self.image_path), self.canvas)

    @property
    def fingerprint(self) -> str:
        sizes = file_sizes(self.image_path, self.annotation_path)
        return f"{sizes} in {self.canvas[0]}x{self.canvas[1]}"

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
            return [*found, str(error)]
        if not found:
            height, width = _photo_size(self.image_path)
            if abs(ids.shape[0] * width - ids.shape[1] * height) > _SAME_SHAPE * ids.size:
                found.append(
                    f"{self.annotation_path}: annotation of {ids.shape}, image of "
                    f"{(height, width)} (H, W)"
                )
        unknown = check_ids(ids, ids.shape, table)
        return [*found, *(f"{self.annotation_path}: {problem}" for problem in unknown)]


def fit(size: Size, canvas: Size) -> Size:
    """The largest (h, w) of the shape of `size` that is no larger than it and than `canvas`."""
    (height, width), (most_rows, most_columns) = size, canvas
    if height <= most_rows and width <= most_columns:
        return size
    if height * most_columns >= width * most_rows:  # the height is what does not fit
        return most_rows, max(1, round(width * most_rows / height))
    return max(1, round(height * most_columns / width)), most_columns


def _photo_size(path: Path) -> Size:
    """(H, W) from the header of a file."""
    if path.suffix == ".png":
        return read_header(path).size
    with _errors(path), Image.open(path, formats=["JPEG"]) as picture:
        return picture.height, picture.width


def _check_photo(path: Path) -> None:
    """Look at a file without decoding it: the checksums of a PNG, begin and end of a JPEG."""
    if path.suffix == ".png":
        check_png(path, RGB)
        return
    _photo_size(path)
    with _errors(path):
        check_end(path, _JPEG_END)


def _read_photo(path: Path) -> Image.Image:
    if path.suffix == ".png":
        return Image.fromarray(read_png(path, RGB))
    with _errors(path), Image.open(path, formats=["JPEG"]) as picture:
        return picture.convert("RGB")


def _errors(path: Path) -> AbstractContextManager[None]:
    return picture_errors(path, kind="JPEG", error_type=SourceError)
