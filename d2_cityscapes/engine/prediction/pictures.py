"""Pictures of one's own, as cameras, phones and archives leave them: read as viewers show them, or
refused in one line.

Shape letters: H, W pixels of a picture as it is shown.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.png import picture_errors, turn_of

__all__ = ["MOST_PIXELS", "PictureError", "read_picture"]

# By content, whatever the ending. Others, such as EPS, would start programs.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
MOST_PIXELS = 89_478_485  # as Pillow warns from; a picture of 8k has 33 million
_LONGEST_SIDE = 65_500  # of a JPEG
_LONGEST_SHAPE = 100  # of the longer to the shorter side; resized, nothing is left of others


class PictureError(D2CityscapesError):
    """A picture that is missing or cannot be read, or two that would be written to one place."""


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


def _check_size(path: Path, picture: Image.Image) -> None:
    """Refuse what would take all memory, or is a line, by the header."""
    width, height = picture.size
    if width * height > MOST_PIXELS or max(width, height) > _LONGEST_SIDE:
        raise PictureError(
            f"{path}: {height} x {width} (H x W) pixels, more than {MOST_PIXELS} or than "
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
