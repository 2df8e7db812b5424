"""PNGs come back as they were written, by either decoder; anything else is one line."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from d2_cityscapes import png
from d2_cityscapes.png import (
    IDS,
    RGB,
    PngError,
    PngKind,
    check_png,
    encode_png,
    read_header,
    read_png,
)

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
PICTURES = st.one_of(
    SIZES.flatmap(lambda size: hnp.arrays(np.uint8, (*size, 3))),
    SIZES.flatmap(lambda size: hnp.arrays(np.uint8, size)),
    SIZES.flatmap(lambda size: hnp.arrays(np.uint16, size)),
)


@pytest.fixture(params=["libpng", "pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pillow":
        monkeypatch.setattr(png, "imagecodecs", None)
    elif png.imagecodecs is None:
        pytest.skip("imagecodecs is not installed")
    return request.param


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def kind_of(pixels: np.ndarray) -> PngKind:
    return RGB if pixels.ndim == 3 else IDS


def outcome(path: Path, kind: PngKind) -> np.ndarray | None:
    try:
        return read_png(path, kind)
    except PngError:
        return None


@given(pixels=PICTURES, level=st.sampled_from([0, 1, 9]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pixels_come_back(decoder: str, tmp_path: Path, pixels: np.ndarray, level: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(pixels, compress_level=level))
    found = read_png(path, kind_of(pixels))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)
    assert read_header(path).size == pixels.shape[:2]
    check_png(path, kind_of(pixels))


@given(pixels=PICTURES | hnp.arrays(np.uint8, (5, 3, 4)))
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_pillow_reads_what_is_encoded(decoder: str, pixels: np.ndarray) -> None:
    found = np.asarray(Image.open(io.BytesIO(encode_png(pixels))))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


def test_large_ids(decoder: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(np.array([[33_999, 7], [0, 26_001]], np.uint16)))
    assert read_png(path, IDS).tolist() == [[33_999, 7], [0, 26_001]]


def test_a_transparent_colour_is_a_colour(decoder: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    path.write_bytes(encoded(pixels, transparency=(1, 2, 3)))
    np.testing.assert_array_equal(read_png(path, RGB), pixels)


def test_comments_and_profiles_change_nothing(decoder: str, tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.png", np.full((2, 3, 3), 90, np.uint8)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 500)
    text.add(b"gAMA", (45_455).to_bytes(4, "big"))
    path.write_bytes(encoded(pixels, pnginfo=text))
    np.testing.assert_array_equal(read_png(path, RGB), pixels)


def test_a_profile_that_libpng_dislikes_is_no_line_on_the_screen(
    decoder: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path, pixels = tmp_path / "a.png", np.full((2, 3, 3), 90, np.uint8)
    path.write_bytes(encoded(pixels, icc_profile=b"no profile"))
    np.testing.assert_array_equal(read_png(path, RGB), pixels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(png.imagecodecs is None, reason="imagecodecs is not installed")
@pytest.mark.parametrize("pixels", [np.uint16, np.uint8])
def test_both_decoders_agree_on_damaged_files(
    pixels: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    shape = (30, 40) if pixels is np.uint16 else (30, 40, 3)
    original = rng.integers(0, 9, shape).astype(pixels)
    data, path, kind = encoded(original), tmp_path / "a.png", kind_of(original)
    for trial in range(120):
        damaged = bytearray(data)
        if trial % 3:
            damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            del damaged[rng.integers(len(data)) :]
        path.write_bytes(damaged)
        fast = outcome(path, kind)
        with monkeypatch.context() as patch:
            patch.setattr(png, "imagecodecs", None)
            slow = outcome(path, kind)
        assert (fast is None) == (slow is None)
        if fast is not None:
            np.testing.assert_array_equal(fast, slow)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", IDS, "not a readable PNG"),
        (b"a picture, surely; of thirty bytes", IDS, "not a readable PNG"),
        (encoded(np.zeros((2, 2, 3), np.uint8)), IDS, "RGB with 8 bits, expected one channel"),
        (encoded(np.zeros((2, 2, 4), np.uint8)), RGB, "RGBA with 8 bits, expected RGB"),
        (encoded(np.zeros((2, 2), bool)), IDS, "grey with 1 bits, expected one channel"),
        (encoded(np.eye(50, dtype=np.uint8))[:-30], IDS, "cannot be decoded"),
        (None, IDS, "missing"),
    ],
)
def test_other_files_are_named(
    decoder: str, content: bytes | None, kind: PngKind, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    for read in (read_png, check_png):
        with pytest.raises(PngError, match=message) as caught:
            read(path, kind)
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_folder(decoder: str, tmp_path: Path) -> None:
    with pytest.raises(PngError, match=f"cannot be read .{os.strerror(21)}"):
        read_png(tmp_path, IDS)


@pytest.mark.parametrize("more", [1, 5000, 100_000])
def test_bytes_behind_the_end_are_passed_over(decoder: str, more: int, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    path, data = tmp_path / "a.png", encoded(pixels)
    path.write_bytes(data + bytes(more))
    check_png(path, RGB)
    np.testing.assert_array_equal(read_png(path, RGB), pixels)
    path.write_bytes(data[:-12] + bytes(more))
    with pytest.raises(PngError, match="cannot be decoded"):
        check_png(path, RGB)


@pytest.mark.parametrize("side", [0, 20_000, 2**31 - 1])
def test_sizes_are_bounded_before_memory_is_taken(decoder: str, side: int, tmp_path: Path) -> None:
    data = bytearray(encoded(np.zeros((2, 2), np.uint8)))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for read in (read_header, lambda path: read_png(path, IDS), lambda path: check_png(path, IDS)):
        with pytest.raises(PngError, match=f"says that it is {side} x {side} ") as caught:
            read(path)
        assert "\n" not in str(caught.value)
