"""Pictures of one's own, as cameras, phones and archives leave them.

Decided one by one: what a folder holds is predicted, or passed over and counted; what a file holds
is read as viewers show it, or refused in one line.

Shape letters: H, W pixels of a picture as it is shown.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.png import comment_of, picture_errors, turn_of
from d2_cityscapes.sources.names import IDS_SUFFIX, PICTURES

__all__ = [
    "DRAWN_SUFFIX",
    "ENDINGS",
    "MARK",
    "FoundPictures",
    "PictureError",
    "find_pictures",
    "is_drawn",
    "read_picture",
]

DRAWN_SUFFIX = "_drawn.jpg"
MARK = "made by d2_cityscapes tools/predict.py"  # a comment in every drawing and map
ENDINGS = (
    *PICTURES,
    ".bmp",
    ".webp",
    ".tif",
    ".tiff",
)  # of pictures in a folder; in upper case too

# By content, whatever the ending. Others, such as EPS, would start programs.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
_MOST_PIXELS = 89_478_485  # as Pillow warns from; the scores of 19 classes take 7 GB then
_LONGEST_SIDE = 65_500  # of a JPEG
_LONGEST_SHAPE = 100  # of the longer to the shorter side; resized, nothing is left of others


class PictureError(D2CityscapesError):
    """A picture that is missing or cannot be read, or two that would be written to one place."""


class FoundPictures(NamedTuple):
    """What there is to predict.

    Attributes:
        pictures: name -> path, where the name is the path below the input, without ending.
        passed_over: why -> how many files of the folders.
    """

    pictures: dict[str, Path]
    passed_over: Counter[str]

    def passed_over_text(self) -> str:
        """ "; passed over: 2 of other kinds", or "" where nothing was."""
        counts = ", ".join(f"{number} {why}" for why, number in self.passed_over.items())
        return f"; passed over: {counts}" if counts else ""


def is_drawn(path: Path) -> bool:
    """Whether a drawing or map was written by this command, which may write it anew."""
    return comment_of(path) == MARK


def find_pictures(inputs: Sequence[Path]) -> FoundPictures:
    """Pictures, and those in folders and below.

    Of a folder are passed over: files of other kinds, those with a dot in front (or in a folder
    that has), and what an earlier run of the command wrote, that is <name>_drawn.jpg and
    <name>_instanceIds.png with its mark, or side by side. A file that is named itself is taken.

    Args:
        inputs: files and folders.

    Raises:
        PictureError: a missing input, or two pictures of one name.
    """
    found = FoundPictures({}, Counter())
    for source in inputs:
        if not source.exists():
            raise PictureError(f"{source}: missing")
        if not source.is_dir():
            _add(found.pictures, source.with_suffix("").name, source)
            continue
        for path in sorted(source.rglob("*")):
            if path.is_dir():
                continue
            why = _passed_over(path, path.relative_to(source))
            if why:
                found.passed_over[why] += 1
            else:
                name = path.relative_to(source).with_suffix("").as_posix()
                _add(found.pictures, name, path)
    return found


def read_picture(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a PNG, JPEG, BMP, WebP, TIFF, GIF or PPM; the first of several.

    It stands as viewers show it, by its EXIF orientation. 16 bits become 8 by their upper half, as
    Pillow does it for colours. Alpha is left out; the colours below it stay.

    Raises:
        PictureError: missing, damaged, too large, or 32 bits a channel, which have no agreed white.
    """
    with picture_errors(path, kind="picture", error_type=PictureError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about sizes and palettes
        try:
            with Image.open(path, formats=_FORMATS) as picture:
                _check_size(path, picture)
                picture.load()
                # 16 bits of grey: older Pillow gives them as 32, which a TIFF may really have
                depth = 16 if picture.format in ("PNG", "PPM") else 32
                return _rgb(path, _upright(picture), depth)
        except (D2CityscapesError, MemoryError, OSError, Image.DecompressionBombError):
            raise
        except Exception as error:  # decoders of damaged files fail in any way
            raise OSError(f"{type(error).__name__}: {error}") from error


def _passed_over(path: Path, below: Path) -> str:
    """Why a file of a folder is no picture to predict; "" where it is one."""
    if any(part.startswith(".") for part in below.parts):
        return "with a dot in front"
    if path.suffix.lower() not in ENDINGS or not path.is_file():
        return "of other kinds"
    for own, other in ((DRAWN_SUFFIX, IDS_SUFFIX), (IDS_SUFFIX, DRAWN_SUFFIX)):
        if path.name.endswith(own):
            twin = path.with_name(f"{path.name.removesuffix(own)}{other}")
            if twin.is_file() or is_drawn(path):
                return "drawn by this command"
    return ""


def _add(pictures: dict[str, Path], name: str, path: Path) -> None:
    other = pictures.setdefault(name, path)
    if other is not path and not other.samefile(path):
        raise PictureError(f"{path} and {other}: both would be written as {name}")


def _check_size(path: Path, picture: Image.Image) -> None:
    """Refuse what would take all memory, or is a line, by the header."""
    width, height = picture.size
    if width * height > _MOST_PIXELS or max(width, height) > _LONGEST_SIDE:
        raise PictureError(
            f"{path}: {height} x {width} (H x W) pixels, more than {_MOST_PIXELS} or than "
            f"{_LONGEST_SIDE} on a side; make it smaller first"
        )
    if max(width, height) > _LONGEST_SHAPE * min(width, height):
        raise PictureError(
            f"{path}: {height} x {width} (H x W) pixels, of which no network sees anything"
        )


def _upright(picture: Image.Image) -> Image.Image:
    """As a viewer shows it. Pillow has turned a TIFF when it was loaded, and says so here."""
    turn = turn_of(picture)
    return picture if turn is None else picture.transpose(turn)


def _rgb(path: Path, picture: Image.Image, depth: int) -> np.ndarray:
    """(H, W, 3) uint8, given the bits of a pixel of mode "I"."""
    if picture.mode.startswith("I;16") or (picture.mode == "I" and depth == 16):
        grey = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise PictureError(f"{path}: 32 bits a channel; write it again with 8 or 16")
    return np.array(picture.convert("RGB"))
