"""Lossless image codecs for shards on small disks.

A frame is one compressed image. Both codecs check a frame before they trust it: zstd by its own
checksum, JPEG 2000, which has none and whose decoder may not come back from damaged data, by a
CRC-32 of the codestream in the four bytes behind it (other decoders pass over them).
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import zstandard

from d2_cityscapes.errors import D2CityscapesError

__all__ = ["CODECS", "ImageCodec", "compress", "decompress", "find_codec"]

_ZSTD_LEVEL = 9


class ImageCodec(NamedTuple):
    """One way to store an image.

    Attributes:
        encode: (H, W, 3) uint8 -> frame.
        decode: frame, (H, W) -> (3, H, W) uint8, the caller's own; ValueError for a damaged frame.
        check: raises `D2CityscapesError` where the codec is not installed.
    """

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, tuple[int, int]], np.ndarray]
    check: Callable[[], Any]


def compress(data: bytes, *, checksum: bool = True) -> bytes:
    """One zstd frame with its size, and a checksum of the data if asked for."""
    return zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=checksum).compress(data)


def decompress(frame: bytes, size: int) -> bytes:
    """The ``size`` bytes of a frame that `compress` made; ValueError for a damaged one."""
    try:
        found = zstandard.frame_content_size(frame)  # before that much memory is asked for
        if found != size:
            raise ValueError(f"{found} bytes, expected {size}")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def find_codec(name: str) -> ImageCodec:
    """A codec by name, ready for use.

    Raises:
        D2CityscapesError: an unknown name, or a codec that is not installed.
    """
    if name not in CODECS:
        raise D2CityscapesError(f"image codec {name!r}; use none, {' or '.join(CODECS)}")
    CODECS[name].check()
    return CODECS[name]


def _encode_zstd(image: np.ndarray) -> bytes:
    return compress(image.transpose(2, 0, 1).tobytes())


def _decode_zstd(frame: bytes, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    raw = decompress(frame, 3 * height * width)
    return np.frombuffer(raw, dtype=np.uint8).reshape(3, height, width).copy()


def _jpeg2000() -> Any:
    with contextlib.suppress(ImportError, AttributeError):  # older ones have no HTJ2K
        import imagecodecs

        if imagecodecs.HTJ2K.available:
            return imagecodecs
    raise D2CityscapesError(
        'image codec jpeg2000-ht needs imagecodecs; run pip install "imagecodecs>=2026.1.14" '
        "(Python 3.11 or newer)"
    )


def _encode_jpeg2000(image: np.ndarray) -> bytes:
    codestream = _jpeg2000().htj2k_encode(np.ascontiguousarray(image), rgb=True, reversible=True)
    return codestream + _crc32(codestream)


def _decode_jpeg2000(frame: bytes, size: tuple[int, int]) -> np.ndarray:
    codestream, crc = frame[:-4], frame[-4:]
    if crc != _crc32(codestream):
        raise ValueError("CRC-32 differs")
    image = np.empty((3, *size), dtype=np.uint8)
    _jpeg2000().htj2k_decode(codestream, planar=True, out=image)  # ValueError for another size
    return image


def _crc32(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "little")


CODECS = {
    "zstd": ImageCodec(_encode_zstd, _decode_zstd, lambda: None),
    "jpeg2000-ht": ImageCodec(_encode_jpeg2000, _decode_jpeg2000, _jpeg2000),
}
