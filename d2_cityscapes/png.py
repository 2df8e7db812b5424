"""PNG files as arrays, by libpng where imagecodecs is installed, else by Pillow, more slowly.

Shape letters: H, W pixels.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import file_errors, write_atomically
from d2_cityscapes.memory import keep_freed_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:  # 30 MB, for a time that only many pictures make felt, and so optional
    import imagecodecs
except ImportError:
    imagecodecs = None  # type: ignore[assignment]

__all__ = [
    "IDS",
    "MOST_PIXELS",
    "RGB",
    "PngError",
    "PngHeader",
    "PngKind",
    "check_png",
    "check_size",
    "comment_of",
    "encode_png",
    "figure_png",
    "picture_errors",
    "read_header",
    "read_png",
    "turn_of",
    "write_picture",
]

_START = struct.Struct(">8s4x4sIIBB")  # signature, length and name of the first chunk, W, H, kind
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END_CHECKSUM = b"\xae\x42\x60\x82"  # of the empty chunk IEND, which ends every PNG
MOST_PIXELS = 178_956_970  # Pillow's limit; a header may say anything
# EXIF orientation -> what shows the picture upright; 1 needs nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_COMMENT = "Comment"  # keyword of a PNG; Pillow calls that of a JPEG "comment"
# A transparent colour would be a fourth channel; of profiles, libpng prints what it thinks of them.
_LEFT_TO_PILLOW = (b"tRNS", b"iCCP")
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}


class PngError(D2CityscapesError):
    """A PNG that is missing, damaged, or of another kind than it should be."""


class PngHeader(NamedTuple):
    """What the first bytes of a PNG say.

    Attributes:
        size: (H, W).
        colour: "grey", "RGB", "palette", "grey with alpha" or "RGBA".
        depth: bits of a channel.
    """

    size: tuple[int, int]
    colour: str
    depth: int


@dataclass(frozen=True)
class PngKind:
    """A kind of PNG that can be asked for.

    Attributes:
        name: for messages.
        accepted: its colours and depths, see `PngHeader`.
        remedy: what to do with others, for messages.
    """

    name: str
    accepted: tuple[tuple[str, int], ...]
    remedy: str = ""


RGB = PngKind("RGB with 8 bits", (("RGB", 8),), "; convert it to RGB with 8 bits a channel")
IDS = PngKind("one channel of instance ids", (("grey", 8), ("grey", 16)))


def read_header(path: Path) -> PngHeader:
    """Size and kind of a PNG, without decoding it.

    Raises:
        PngError: missing, no PNG, or of an impossible size.
    """
    with picture_errors(path), open(path, "rb") as file:
        header = _parse_header(file.read(_START.size))
    check_size(path, header.size)
    return header


def check_size(
    path: Path, size: tuple[int, int], *, error_type: type[D2CityscapesError] = PngError
) -> None:
    """Refuse (H, W) of a header before memory is taken for it: empty, or beyond 179 megapixels.

    Raises:
        D2CityscapesError: of `error_type`.
    """
    height, width = size
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise error_type(
            f"{path}: says that it is {height} x {width} (H x W) pixels; pictures have from 1 to "
            f"{MOST_PIXELS}; download or write it again"
        )


def check_png(path: Path, kind: PngKind) -> None:
    """Compare the checksums of a PNG up to its end, without decoding it.

    Raises:
        PngError: missing, damaged or of another kind.
    """
    _check_kind(path, read_header(path), kind)
    with picture_errors(path):
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
        _check_end(path)  # Pillow stops in front of the last checksum


def _check_end(path: Path) -> None:
    """OSError where a PNG does not reach its end chunk; what lies behind that is passed over."""
    with open(path, "rb") as file:
        file.seek(len(_SIGNATURE))
        while len(start := file.read(8)) == 8:
            if start[4:] == b"IEND":
                if file.read(4) == _END_CHECKSUM:
                    return
                break
            file.seek(int.from_bytes(start[:4], "big") + 4, 1)
    raise OSError("truncated")


def read_png(path: Path, kind: PngKind) -> np.ndarray:
    """(H, W, 3) uint8 pixels of `RGB`, (H, W) uint8 or uint16 values of `IDS`.

    Raises:
        PngError: missing, damaged or of another kind.
    """
    keep_freed_memory()
    with picture_errors(path):
        data = path.read_bytes()
        header = _parse_header(data)
    check_size(path, header.size)
    _check_kind(path, header, kind)
    array = _decode_with_libpng(data, header)
    if array is not None:
        return array
    with picture_errors(path), Image.open(path, formats=["PNG"]) as image:
        array = np.asarray(image)
    return array if array.dtype == np.uint8 else array.astype(np.uint16)  # old Pillow: int32


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """What turns a picture as viewers show it, by its EXIF orientation; None for nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF, of a picture that is none the worse
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def write_picture(path: Path, pixels: np.ndarray, *, comment: str = "") -> None:
    """Write (H, W, 3) uint8 RGB or (H, W) uint8, uint16 or bool values, whole or not at all.

    Bools take one bit a pixel.

    Args:
        path: a PNG where it ends in .png, else a JPEG.
        pixels: what is written.
        comment: goes with it, for `comment_of`.
    """
    buffer = io.BytesIO()
    kind: dict[str, Any] = {"format": "JPEG", "quality": 92}
    if path.suffix == ".png":
        kind = {"format": "PNG", "pnginfo": PngInfo()}
        if comment:
            kind["pnginfo"].add_text(_COMMENT, comment)
    elif comment:
        kind["comment"] = comment.encode()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, **kind)
    write_atomically(path, [buffer.getvalue()])


def encode_png(pixels: np.ndarray) -> bytes:
    """(H, W, 3 or 4) uint8 or (H, W) uint8 or uint16 values as a PNG, soon rather than small."""
    if imagecodecs is not None:
        # of a photo's noise nothing comes twice
        strategy = imagecodecs.PNG.STRATEGY.HUFFMAN_ONLY if pixels.shape[2:] == (3,) else None
        up = imagecodecs.PNG.FILTER.UP
        return bytes(imagecodecs.png_encode(pixels, level=1, strategy=strategy, filter=up))
    buffer = io.BytesIO()
    # Pillow tries all filters on each row; of what is left, run lengths are as short as matches
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def comment_of(path: Path) -> str:
    """The comment that `write_picture` wrote with a PNG or JPEG; "" where there is no other."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            found = picture.info.get(_COMMENT.lower(), picture.info.get(_COMMENT, b""))
    except Exception:  # no picture, or a damaged one, which fails in any way
        return ""
    return found.decode(errors="replace") if isinstance(found, bytes) else str(found)


def figure_png(figure: Figure) -> bytes:
    """A figure of matplotlib as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _decode_with_libpng(data: bytes, header: PngHeader) -> np.ndarray | None:
    """The pixels; None where imagecodecs is missing or would not give what Pillow gives."""
    too_large = np.prod(header.size) > (Image.MAX_IMAGE_PIXELS or np.inf)
    start = data[: data.find(b"IDAT")]
    if imagecodecs is None or too_large or any(chunk in start for chunk in _LEFT_TO_PILLOW):
        return None
    try:
        return imagecodecs.png_decode(data)
    except (RuntimeError, ValueError):  # what Pillow says of it is what users are told
        return None


def _parse_header(data: bytes) -> PngHeader:
    if len(data) < _START.size:
        raise UnidentifiedImageError
    signature, chunk, width, height, depth, colour = _START.unpack_from(data)
    if signature != _SIGNATURE or chunk != b"IHDR" or colour not in _COLOURS:
        raise UnidentifiedImageError
    return PngHeader((height, width), _COLOURS[colour], depth)


def _check_kind(path: Path, header: PngHeader, kind: PngKind) -> None:
    if (header.colour, header.depth) not in kind.accepted:
        raise PngError(
            f"{path}: {header.colour} with {header.depth} bits, expected {kind.name}{kind.remedy}"
        )


@contextlib.contextmanager
def picture_errors(
    path: Path, *, kind: str = "PNG", error_type: type[D2CityscapesError] = PngError
) -> Iterator[None]:
    """Turn what goes wrong with a picture file inside the block into one line."""
    try:
        with file_errors(path, error_type):
            yield
    except UnidentifiedImageError as error:
        raise error_type(f"{path}: not a readable {kind}; download or write it again") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise error_type(
            f"{path}: cannot be decoded ({error}); download or write it again"
        ) from error
