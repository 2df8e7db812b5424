"""Image codecs: lossless, what they say they are, and never fooled by damaged frames."""

from __future__ import annotations

import io
import random
import struct
import sys

import jpeg2000
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.shards.image_codecs import CODECS, compress, decompress, find_codec


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(32, 48, 3): a smooth picture with an edge."""
    y, x = np.mgrid[:32, :48]
    image = np.stack([4 * x, 8 * y, 2 * (x + y)], axis=2).astype(np.uint8)
    image[10:20, 5:30] = (200, 30, 90)
    return image


@pytest.mark.parametrize("name", jpeg2000.CODECS)
@given(st.data())
def test_round_trip(name, data):
    shape = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20), st.just(3)))
    image = data.draw(hnp.arrays(np.uint8, shape))
    decoded = CODECS[name].decode(CODECS[name].encode(image), shape[:2])
    np.testing.assert_array_equal(decoded, image.transpose(2, 0, 1))
    assert decoded.dtype == np.uint8 and decoded.flags.writeable and decoded.flags.c_contiguous


def test_zstd_frames_are_planar_with_a_checksum(photo):
    frame = CODECS["zstd"].encode(photo)
    assert zstandard.get_frame_parameters(frame).has_checksum
    assert zstandard.ZstdDecompressor().decompress(frame) == photo.transpose(2, 0, 1).tobytes()


def _markers(codestream: bytes) -> dict[int, bytes]:
    """Marker -> content of the segments in the main header of a JPEG 2000 codestream."""
    assert codestream[:2] == b"\xff\x4f"
    found, position = {}, 2
    while position < len(codestream):
        marker, length = struct.unpack(">HH", codestream[position : position + 4])
        if marker == 0xFF90:  # start of a tile
            break
        found[marker] = codestream[position + 4 : position + 2 + length]
        position += 2 + length
    return found


@jpeg2000.needed
def test_jpeg2000_is_high_throughput_and_reversible(photo):
    markers = _markers(CODECS["jpeg2000-ht"].encode(photo))
    (parts,) = struct.unpack(">I", markers[0xFF50][:4])  # CAP: bit 15 from the top is part 15, HT
    assert parts == 1 << (32 - 15)
    style, transformation = markers[0xFF52][8:10]  # COD
    assert style & 0x40 and transformation == 1  # HT code blocks; the reversible 5-3 filter


@jpeg2000.needed
def test_jpeg2000_frames_open_elsewhere(photo):
    """The checksum behind the codestream is passed over by other decoders (here OpenJPEG)."""
    with Image.open(io.BytesIO(CODECS["jpeg2000-ht"].encode(photo))) as image:
        np.testing.assert_array_equal(np.asarray(image), photo)


@pytest.mark.parametrize("name", jpeg2000.CODECS)
def test_damaged_frames_are_refused(name, photo):
    """Cut anywhere or with a flipped bit: a ValueError, or for zstd the right pixels (a bit that
    means nothing); never other pixels, a crash or a hang."""
    codec, rng = CODECS[name], random.Random(1)
    frame = codec.encode(photo)
    for size in range(0, len(frame), max(1, len(frame) // 60)):
        with pytest.raises(ValueError):
            codec.decode(frame[:size], (32, 48))
    for _ in range(300):
        flipped = bytearray(frame)
        flipped[rng.randrange(min(len(frame), rng.choice([40, 10**9])))] ^= 1 << rng.randrange(8)
        try:
            decoded = codec.decode(bytes(flipped), (32, 48))
        except ValueError:
            continue
        assert name == "zstd"
        np.testing.assert_array_equal(decoded, photo.transpose(2, 0, 1))


@pytest.mark.parametrize("name", jpeg2000.CODECS)
def test_a_frame_of_another_size_is_refused(name, photo):
    with pytest.raises(ValueError):
        CODECS[name].decode(CODECS[name].encode(photo), (32, 49))


def test_a_frame_that_claims_a_huge_size_is_refused_before_memory_is_asked_for():
    frame = compress(bytes(10))
    huge = frame[:4] + bytes([0xE4]) + struct.pack("<Q", 1 << 60) + frame[6:]
    assert zstandard.frame_content_size(huge) == 1 << 60
    with pytest.raises(ValueError, match="expected 10"):
        decompress(huge, 10)


def test_unknown_codecs_and_one_that_is_not_installed(monkeypatch):
    with pytest.raises(D2CityscapesError, match="image codec 'png'; use none, zstd or jpeg2000-ht"):
        find_codec("png")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(D2CityscapesError, match='needs imagecodecs; run pip install "imagecodecs'):
        find_codec("jpeg2000-ht")
    assert find_codec("zstd") is CODECS["zstd"]
