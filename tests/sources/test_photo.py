"""Photographs of any size: how they fit a canvas, and what comes back from shards of them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.labels.instances import find_instances
from d2_cityscapes.shards.verifier import verify_shards
from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.photo import PhotoSource, fit

SIDES = st.integers(1, 300)
CANVAS = (12, 20)


@pytest.mark.parametrize(
    ("size", "canvas", "expected"),
    [
        ((720, 1280), (1080, 1920), (720, 1280)),  # never enlarged
        ((1080, 1920), (1080, 1920), (1080, 1920)),
        ((3024, 4032), (1536, 2048), (1536, 2048)),
        ((2160, 3840), (1536, 2048), (1152, 2048)),  # the width binds
        ((4032, 3024), (1536, 2048), (1536, 1152)),  # the height binds
        ((2, 4000), (1536, 2048), (1, 2048)),
    ],
)
def test_fit(size, canvas, expected):
    assert fit(size, canvas) == expected


@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
def test_fit_keeps_the_shape_and_fills_the_canvas(size, canvas):
    fitted = fit(size, canvas)
    assert all(1 <= f <= min(s, c) for f, s, c in zip(fitted, size, canvas, strict=True))
    scale = min(1, *(c / s for c, s in zip(canvas, size, strict=True)))
    assert all(abs(f - scale * s) <= 0.5 or f == 1 for f, s in zip(fitted, size, strict=True))


@dataclass(frozen=True)
class Photo(PhotoSource):
    """A photograph whose annotation is a file of numpy."""

    def read_annotation(self):
        return np.load(self.annotation_path)


@pytest.fixture
def make(tmp_path):
    rng = np.random.default_rng(3)

    def photo(name, size, *, ids=None, canvas=CANVAS):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        if ids is None:
            ids = rng.choice([0, 7, 26, 24000, 33999], size).astype(np.uint16)
        annotation = tmp_path / f"{name}.npy"
        np.save(annotation, ids)
        return Photo(tmp_path / name, annotation, name, canvas)

    return photo


@pytest.mark.parametrize("image_codec", ["none", "zstd"])
@pytest.mark.parametrize("annotation_codec", ["zstd", "raw"])
def test_records_have_the_size_of_their_photographs(make, tmp_path, image_codec, annotation_codec):
    sizes = [(12, 20), (7, 11), (12, 5)]
    sources = [make(f"{i}.png", size) for i, size in enumerate(sizes)]
    folder = tmp_path / "shards"
    codecs = {"image_codec": image_codec, "annotation_codec": annotation_codec}
    write_shards(sources, folder, split="train", **codecs)
    verify_shards(sources, folder, split="train")
    reader = ShardReader(folder)
    for i, (source, size) in enumerate(zip(sources, sizes, strict=True)):
        record = reader[i]
        assert reader.image_size(i) == record.instance_ids.shape == record.image.shape[1:] == size
        assert record.image.is_contiguous() and reader.id_map(i).flags.c_contiguous
        np.testing.assert_array_equal(record.image.permute(1, 2, 0), source.image())
        ids = np.load(source.annotation_path)
        np.testing.assert_array_equal(record.instance_ids, ids)
        np.testing.assert_array_equal(reader.id_map(i), ids)
        expected = find_instances(ids, CITYSCAPES)
        assert record.boxes.tolist() == expected.boxes.tolist()
        assert record.areas.tolist() == expected.areas.tolist()


def test_what_is_larger_is_shrunk_with_its_annotation(make):
    """Three quarters of each quadrant's pixels are left out; ids are never blended."""
    ids = np.kron([[7, 26001], [24000, 0]], np.ones((12, 20))).astype(np.uint16)
    source = make("large.png", (24, 40), ids=ids)
    assert source.size == CANVAS
    assert source.image().shape == (12, 20, 3)
    expected = np.kron([[7, 26001], [24000, 0]], np.ones((6, 10)))
    np.testing.assert_array_equal(source.instance_ids(), expected)


def test_photographs_that_differ_only_in_canvas_are_other_sources(make, tmp_path):
    write_shards([make("a.png", (4, 6))], tmp_path / "shards", split="train")
    with pytest.raises(ShardError, match="holds shards made from other images or settings"):
        write_shards([make("a.png", (4, 6), canvas=(8, 8))], tmp_path / "shards", split="train")


def test_sources_without_canvas_leave_shards_as_they_were(array_source, tmp_path):
    """No word of sizes in the header: byte for byte what images of one size have always given."""
    source = array_source("a.png", np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 7))
    (path,) = write_shards([source], tmp_path, split="train")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert "sizes" not in header["__metadata__"]


def test_canvases_of_a_split_are_equal(make, tmp_path):
    sources = [make("a.png", (4, 6)), make("b.png", (4, 6)), make("c.png", (4, 6), canvas=(8, 8))]
    with pytest.raises(SourceError, match=r"c.png: \(8, 8\) .*images of train are \(12, 20\)"):
        write_shards(sources, tmp_path / "shards", split="train")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), ": missing"),
        (lambda path: path.write_bytes(b"no picture"), "not a readable"),
        (_cut, "cannot be decoded"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot be read (Is a directory)"),
        (
            lambda path: Image.new("RGB", (4, 9)).save(path),
            "annotation of (4, 9), image of (9, 4) (H, W)",
        ),
    ],
)
def test_problems_are_named(make, ending, damage, message):
    source = make(f"a.{ending}", (4, 9))
    assert source.problems(CITYSCAPES) == []
    damage(source.image_path)
    (problem,) = Photo(
        source.image_path, source.annotation_path, source.file_name, CANVAS
    ).problems(CITYSCAPES)
    assert "a.png" in problem or "a.jpg" in problem
    assert message in problem


def test_unknown_ids_are_a_problem(make):
    source = make("a.png", (2, 2), ids=np.array([[7, 40], [41, 26000]], np.uint16))
    (problem,) = source.problems(CITYSCAPES)
    assert problem.endswith("ids 40, 41 are not in the cityscapes label table")


def test_jpegs_are_read_as_pillow_does(make):
    source = make("a.jpg", (12, 20))
    np.testing.assert_array_equal(source.image(), np.asarray(Image.open(source.image_path)))
    grey = source.image_path.with_name("grey.jpg")
    Image.new("L", (20, 12), 90).save(grey)
    assert (Photo(grey, source.annotation_path, "grey.jpg", CANVAS).image() == 90).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_taken_as_viewers_show_it(make, orientation):
    """Its annotation was drawn on what a label tool showed."""
    source = make("a.jpg", (8, 12), canvas=(20, 20))
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:4, :6] = 255  # top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(source.image_path, quality=95, exif=exif)
    turned = orientation > 4
    ids = np.full((12, 8) if turned else (8, 12), 7, np.uint16)
    np.save(source.annotation_path, ids)
    source = Photo(source.image_path, source.annotation_path, "a.jpg", (20, 20))
    assert source.problems(CITYSCAPES) == []
    assert source.size == source.instance_ids().shape == ids.shape
    shown = source.image()
    assert shown.shape == (*ids.shape, 3)
    corner = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}[orientation]
    rows = slice(0, 3) if corner[0] == "t" else slice(-3, None)
    columns = slice(0, 3) if corner[1] == "l" else slice(-3, None)
    assert shown[rows, columns].min() > 200


def test_an_annotation_of_the_picture_before_it_was_turned_is_refused(make):
    source = make("a.jpg", (8, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8)).save(source.image_path, exif=exif)
    source = Photo(source.image_path, source.annotation_path, "a.jpg", CANVAS)
    (problem,) = source.problems(CITYSCAPES)
    assert "annotation of (8, 12), image of (12, 8) (H, W)" in problem


@pytest.mark.parametrize("ending", ["png", "jpg", "JPEG", "PNG"])
def test_bytes_behind_the_end_are_passed_over(make, ending):
    """The film of a "motion photo", or what a camera writes there; a thumbnail has an end too."""
    source = make(f"a.{ending}", (8, 12))
    if ending in ("jpg", "JPEG"):
        exif = Image.Exif()
        exif[0x927C] = b"\xff\xd8 a thumbnail \xff\xd9"
        Image.fromarray(source.image()).save(source.image_path, "JPEG", exif=exif)
    expected = source.image()
    whole = source.image_path.read_bytes()
    source.image_path.write_bytes(whole + bytes(100_000))
    assert source.problems(CITYSCAPES) == []
    np.testing.assert_array_equal(source.image(), expected)
    source.image_path.write_bytes(whole[:-20] + bytes(100_000))
    assert "cannot be decoded" in source.problems(CITYSCAPES)[0]


def test_an_annotation_far_larger_than_its_photograph_is_refused(make):
    source = make("a.png", (2, 4), ids=np.zeros((20, 40), np.uint16))
    (problem,) = source.problems(CITYSCAPES)
    assert "annotation of (20, 40), image of (2, 4)" in problem


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_make_a_photograph_unreadable(make):
    source = make("a.jpg", (8, 12))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 8), (9, 9, 9)).save(source.image_path, exif=exif)
    whole = source.image_path.read_bytes()
    place = whole.index(b"Exif")
    for i in range(6, 6 + 8 + 2 + 12 + 4):  # what stands in front of the tag, and the tag
        for value in (0, 7, 255):
            content = bytearray(whole)
            content[place + i] = value
            source.image_path.write_bytes(content)
            again = Photo(source.image_path, source.annotation_path, "a.jpg", (20, 20))
            assert again.image().shape[:2] == again.size and again.size in ((8, 12), (12, 8))
