"""Pictures as cameras and archives leave them: read as viewers show them, or one line."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.engine.prediction.pictures import PictureError, read_picture

RNG = np.random.default_rng(3)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)


def png(path: Path, colour: int, depth: int, rows: bytes, size: tuple[int, int]) -> Path:
    """A PNG from rows with their filter bytes: kinds that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def rows_16(values: np.ndarray) -> bytes:
    """(H, W, C) uint16 as the rows of a PNG, without filters."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)


@pytest.mark.parametrize("ending", [".png", ".PNG", ".tif", ".TIFF"])
@pytest.mark.parametrize("low", [0, 7, 255])
def test_16_bits_of_grey_show_the_same_as_8(tmp_path: Path, ending: str, low: int) -> None:
    path = tmp_path / f"grey16{ending}"
    Image.fromarray(GREY.astype(np.uint16) * 256 + low).save(path)
    np.testing.assert_array_equal(read_picture(path), np.repeat(GREY[..., None], 3, axis=2))


def test_big_endian_tiff(tmp_path: Path) -> None:
    values = (GREY.astype(int) * 256 + 9).astype(">u2")
    Image.frombytes("I;16B", (9, 6), values.tobytes()).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif")[..., 1], GREY)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_of_every_colour(tmp_path: Path, colour: int, channels: int) -> None:
    values = RNG.integers(0, 1 << 16, (6, 9, channels), dtype=np.uint16)
    found = read_picture(png(tmp_path / "a.png", colour, 16, rows_16(values), (6, 9)))
    expected = (values >> 8)[..., : 1 if channels < 3 else 3].astype(np.uint8)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, (6, 9, 3)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "F", "I"])
@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp", "webp"])
def test_every_mode_becomes_rgb_or_one_line(tmp_path: Path, mode: str, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Image.fromarray(RGB).convert(mode).save(path)
    except (OSError, ValueError):
        return  # there is no such file
    with Image.open(path) as picture:
        stored = picture.mode
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if stored == "F" or (stored == "I" and kind == "tif"):
            with pytest.raises(PictureError, match="32 bits a channel"):
                read_picture(path)
        else:
            found = read_picture(path)
            assert found.shape == RGB.shape and found.dtype == np.uint8


def test_alpha_is_left_out(tmp_path: Path) -> None:
    pixels = np.dstack([RGB, GREY])
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_it_stands_as_viewers_show_it(tmp_path: Path, kind: str, orientation: int) -> None:
    shown = np.zeros((16, 32, 3), np.uint8)  # what a viewer has: red top left, blue bottom left
    shown[:8, :16], shown[8:, :16] = (250, 0, 0), (0, 0, 250)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: shown.transpose(1, 0, 2)[::-1],
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: shown.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    options = {"lossless": True} if kind == "webp" else {}
    picture = Image.fromarray(np.ascontiguousarray(stored))
    picture.save(path, exif=exif, **options)
    found = read_picture(path).astype(int)
    assert found.shape == shown.shape
    assert np.abs(found[::15, ::31] - shown[::15, ::31].astype(int)).max() < 30  # the corners


def test_damaged_exif_is_no_damage(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff")):
        Image.fromarray(RGB).save(tmp_path / f"{number}.jpg", exif=exif)
        assert read_picture(tmp_path / f"{number}.jpg").shape == RGB.shape


def test_an_orientation_that_there_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), RGB)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "bmp", "webp", "gif", "ppm"])
def test_every_damage_is_one_line(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    picture = Image.fromarray(RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    picture.save(buffer, formats.get(kind, kind.upper()))
    whole = buffer.getvalue()
    path = tmp_path / f"a.{kind}"
    variants = [b"", whole[:5], whole[: len(whole) // 2]]
    for _ in range(60):
        changed = bytearray(whole)
        for place in RNG.integers(0, min(len(whole), 300), 4):
            changed[place] = RNG.integers(0, 256)
        variants.append(bytes(changed))
    for data in variants:
        path.write_bytes(data)
        try:
            found = read_picture(path)
        except PictureError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
        else:
            assert found.ndim == 3


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_000, 10_000), (4, 70_000)])
def test_a_header_that_claims_too_much(tmp_path: Path, size: tuple[int, int]) -> None:
    path = png(tmp_path / "bomb.png", 0, 1, b"", size)
    with (
        warnings.catch_warnings(),
        pytest.raises(PictureError, match=r"bomb\.png: .*(pixels|could be decompression bomb)"),
    ):
        warnings.simplefilter("error")
        read_picture(path)


def test_no_program_is_started_for_a_picture(tmp_path: Path) -> None:
    """Pillow gives Encapsulated PostScript to Ghostscript."""
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(PictureError, match="not a readable picture"):
        read_picture(tmp_path / "a.png")
