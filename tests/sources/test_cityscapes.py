"""The official tree: found in order, and everything wrong listed by path."""

from __future__ import annotations

import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.png import PngError
from d2_cityscapes.sources.check import check_names
from d2_cityscapes.sources.cityscapes import (
    DEFAULT_PARTITIONS,
    find_cities,
    find_sources,
    find_splits,
    parse_partitions,
)
from d2_cityscapes.sources.errors import SourceError


@pytest.fixture
def tree(tmp_path):
    rng = np.random.default_rng(1)
    for stem in ("bochum_000000_000313", "aachen_000010_000019", "aachen_000002_000019"):
        city = stem.split("_")[0]
        images = tmp_path / "leftImg8bit" / "train" / city
        ids = tmp_path / "gtFine" / "train" / city
        images.mkdir(parents=True, exist_ok=True)
        ids.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{stem}_leftImg8bit.png")
        values = rng.choice([7, 26, 26001, 33999], (6, 10)).astype(np.uint16)
        Image.fromarray(values).save(ids / f"{stem}_gtFine_instanceIds.png")
    return tmp_path


def test_sources_are_sorted_and_read_16_bit_ids(tree):
    sources = find_sources(tree, "train")
    assert [s.file_name.split("_left")[0] for s in sources] == [
        "aachen_000002_000019",
        "aachen_000010_000019",
        "bochum_000000_000313",
    ]
    assert sources[0].size == (6, 10)
    assert sources[0].image().shape == (6, 10, 3)
    assert set(np.unique(sources[0].instance_ids())) <= {7, 26, 26001, 33999}


def _problems(tree, split="train", **options):
    return [p for s in find_sources(tree, split, **options) for p in s.problems(CITYSCAPES)]


def test_a_sound_tree_has_no_problems(tree, cityscapes_tree):
    assert _problems(tree) == []
    assert _problems(cityscapes_tree) == []


def test_every_problem_is_listed_by_path(tree):
    ids, images = tree / "gtFine/train", tree / "leftImg8bit/train"
    (ids / "bochum/bochum_000000_000313_gtFine_instanceIds.png").unlink()
    small = ids / "aachen/aachen_000002_000019_gtFine_instanceIds.png"
    Image.fromarray(np.full((3, 5), 7, np.uint16)).save(small)
    (images / "aachen/aachen_000010_000019_leftImg8bit.png").unlink()
    expected = [
        f"{small}: id map of (3, 5), image of (6, 10) (H, W)",
        f"{images}/aachen/aachen_000010_000019_leftImg8bit.png: missing",
        f"{ids}/bochum/bochum_000000_000313_gtFine_instanceIds.png: missing",
    ]
    assert _problems(tree) == expected


def _save(array, **options):
    return lambda path: Image.fromarray(array).save(path, "PNG", **options)


def _directory(path):
    path.unlink()
    path.mkdir()


def _loop(path):
    path.unlink()
    path.symlink_to(path.name)


def _deep_rgb(path):
    """The header of the picture says 16 bits a channel, which Pillow also calls RGB."""
    content = bytearray(path.read_bytes())
    content[24] = 16
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


GRAY = np.full((6, 10), 7, np.uint8)
COLOR = np.full((6, 10, 3), 7, np.uint8)


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("image", _save(GRAY), "grey with 8 bits, expected RGB with 8 bits"),
        ("image", _save(np.dstack([COLOR, GRAY])), "RGBA with 8 bits, expected RGB"),
        ("image", _deep_rgb, "RGB with 16 bits, expected RGB with 8 bits"),
        ("image", lambda path: path.write_bytes(b"not a picture"), "not a readable PNG"),
        ("image", lambda path: path.write_bytes(b""), "not a readable PNG"),
        ("image", lambda path: Image.fromarray(COLOR).save(path, "JPEG"), "not a readable PNG"),
        ("image", _directory, "cannot be read (Is a directory)"),
        ("image", _loop, "cannot be read (Too many levels of symbolic links)"),
        ("ids", _save(COLOR), "RGB with 8 bits, expected one channel of instance ids"),
        ("ids", _save(GRAY.astype(bool)), "grey with 1 bits, expected one channel of instance ids"),
        ("ids", _save(GRAY + 40), "ids 47 are not in the cityscapes label table"),
        ("ids", _save(np.full((6, 10), 40001, np.uint16)), "ids 40001 are not in the cityscapes"),
        ("ids", _directory, "cannot be read (Is a directory)"),
    ],
)
def test_files_that_cannot_be_packed(tree, kind, damage, message):
    source = find_sources(tree, "train")[1]
    path = source.image_path if kind == "image" else source.ids_path
    damage(path)
    (problem,) = _problems(tree)
    assert problem.startswith(f"{path}: ") and message in problem


def test_eight_bit_ids_are_fine(tree):
    Image.fromarray(GRAY).save(find_sources(tree, "train")[0].ids_path)
    assert _problems(tree) == []


@pytest.mark.parametrize("kind", ["image_path", "ids_path"])
def test_no_damage_to_a_file_goes_unnoticed(tree, kind):
    """Every truncation, and a flipped bit in every byte but the length of the empty end chunk."""
    source = find_sources(tree, "train")[0]
    path = getattr(source, kind)
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position])
        assert source.problems(CITYSCAPES), f"cut at {position}"
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        in_end_length = len(content) - 12 <= position < len(content) - 8
        assert in_end_length or source.problems(CITYSCAPES), f"flipped at {position}"


def test_a_truncated_picture_is_named(tree):
    path = tree / "leftImg8bit/train/aachen/aachen_000002_000019_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:-40])
    source = find_sources(tree, "train")[0]
    with pytest.raises(PngError, match=r"aachen_000002_000019_leftImg8bit.png.*download"):
        source.image()


def test_a_wrong_folder_and_a_wrong_split(tree):
    with pytest.raises(SourceError, match="no leftImg8bit/train"):
        find_sources(tree / "gtFine", "train")
    with pytest.raises(SourceError, match="Cityscapes has train, val, train_extra, test"):
        find_sources(tree, "demoVideo")
    shutil.rmtree(tree / "gtFine")
    with pytest.raises(SourceError, match="no gtFine/train"):
        find_sources(tree, "train")


def test_subsets(tree):
    names = [s.file_name for s in find_sources(tree, "train")]
    assert [s.file_name for s in find_sources(tree, "train", limit=2)] == names[:2]
    assert [s.file_name for s in find_sources(tree, "train", limit=9)] == names
    bochum = find_sources(tree, "train", cities=["bochum"], limit=2)
    assert [s.file_name for s in bochum] == names[2:]
    assert _problems(tree, cities=["aachen"]) == []
    with pytest.raises(SourceError, match="limit 0; give 1 or more"):
        find_sources(tree, "train", limit=0)


def test_cities_of_several_splits(cityscapes_tree):
    splits = find_splits(cityscapes_tree, ["train", "val"], cities=["bochum", "lindau"])
    assert {s.image_path.parent.name for s in splits["train"]} == {"bochum"}
    assert {s.image_path.parent.name for s in splits["val"]} == {"lindau"}
    with pytest.raises(SourceError, match="no city bokum in train, val; did you mean bochum"):
        find_splits(cityscapes_tree, ["train", "val"], cities=["bokum", "lindau"])
    with pytest.raises(SourceError, match="no city xyz in val; it has frankfurt, lindau, mun"):
        find_splits(cityscapes_tree, ["val"], cities=["xyz"])
    with pytest.raises(SourceError, match="no images of bochum in val; leave the split out"):
        find_splits(cityscapes_tree, ["train", "val"], cities=["bochum"])


def test_partitions_are_parsed():
    assert parse_partitions([]) == DEFAULT_PARTITIONS
    assert parse_partitions(["val=2", "train=16"]) == DEFAULT_PARTITIONS | {"train": 16, "val": 2}


@pytest.mark.parametrize("argument", ["train=0", "foo=3", "train=x", "train", "=3", "val=-1", ""])
def test_wrong_partitions_are_one_line(argument):
    with pytest.raises(SourceError, match=f"partitions '{argument}'; give SPLIT=N"):
        parse_partitions([argument])


# what file systems, archives and label tools leave behind ---------------------------------------


def _rename(tree, old, new):
    for path in sorted(tree.rglob(f"*{old}")):
        path.rename(path.with_name(path.name.replace(old, new)))


def test_names_with_a_dot_in_front_are_passed_over_with_a_word(tree, caplog):
    expected = [s.file_name for s in find_sources(tree, "train")]
    for kind in ("leftImg8bit", "gtFine"):
        for path in sorted((tree / kind).rglob("*.png")):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 not a picture")
        shutil.copytree(tree / kind / "train/aachen", tree / kind / "train/.trash")
    assert [s.file_name for s in find_sources(tree, "train")] == expected
    assert _problems(tree) == []
    assert caplog.text.count("passed over 7 files with a dot in front") == 4
    assert find_cities(tree, "train") == ["aachen", "bochum"]


def test_endings_in_upper_case_are_read(tree):
    expected = [s.image() for s in find_sources(tree, "train")]
    _rename(tree, ".png", ".PNG")
    sources = find_sources(tree, "train")
    assert _problems(tree) == []
    assert all((s.image() == e).all() for s, e in zip(sources, expected, strict=True))


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".bmp", ".webp", ".tif"])
def test_pictures_of_another_kind_are_named(tree, ending):
    first = find_sources(tree, "train")[0]
    first.image_path.rename(first.image_path.with_suffix(ending))
    other = first.image_path.with_suffix(ending).name
    (problem,) = _problems(tree)
    assert problem == f"{first.image_path}: missing, but {other} is there; convert it to PNG"
    _rename(tree / "leftImg8bit", ".png", ending)
    with pytest.raises(SourceError, match=rf"leftImg8bit/train has \{ending} files .*convert them"):
        find_sources(tree, "train")


def test_bytes_behind_the_end_of_a_picture_are_passed_over(tree):
    expected = find_sources(tree, "train")[0].image()
    for path in tree.rglob("*.png"):
        with open(path, "ab") as file:
            file.write(bytes(10_000))
    assert _problems(tree) == []
    np.testing.assert_array_equal(find_sources(tree, "train")[0].image(), expected)


def test_links_are_followed(tree, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    for kind in ("leftImg8bit", "gtFine"):
        (linked / kind).mkdir()
        (linked / kind / "train").mkdir()
        for city in (tree / kind / "train").iterdir():
            (linked / kind / "train" / city.name).symlink_to(city)
    assert len(find_sources(linked, "train")) == 3 and _problems(linked) == []


@pytest.mark.parametrize("side", [0, 10**6])
def test_sizes_of_headers_are_not_believed(tree, side):
    path = find_sources(tree, "train")[0].image_path
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    (problem,) = _problems(tree)
    assert problem.startswith(f"{path}: ")
    with pytest.raises(PngError, match=rf"says that it is {side} x {side} \(H x W\) pixels"):
        find_sources(tree, "train")[0].image()


def test_the_same_name_in_two_cities(tree):
    """The order is that of the cities, whatever the hashes of texts."""
    for kind in ("leftImg8bit", "gtFine"):
        for city in ("aachen", "bochum"):
            for path in sorted((tree / kind / "train" / city).iterdir()):
                path.rename(path.with_name(path.name.replace(city, "town")))
    first, second = (tree / kind / "train/bochum" for kind in ("leftImg8bit", "gtFine"))
    for folder in (first, second):
        for path in sorted((folder.parent / "aachen").glob("*000002*")):
            shutil.copy(path, folder)
    places = [s.image_path.parent.name for s in find_sources(tree, "train")]
    assert places == ["aachen", "aachen", "bochum", "bochum"]
    with pytest.raises(
        SourceError, match=r"two images called town_000002_000019: .*aachen.*bochum"
    ):
        check_names({"train": find_sources(tree, "train")})


# the test split -----------------------------------------------------------------------------------


@pytest.fixture
def test_tree(tree):
    (tree / "leftImg8bit/train").rename(tree / "leftImg8bit/test")
    (tree / "gtFine/train").rename(tree / "gtFine/test")
    return tree


def test_a_test_split_without_annotations_is_void(test_tree):
    labelled = find_sources(test_tree, "test")
    assert labelled[0].instance_ids().any() and _problems(test_tree, "test") == []
    shutil.rmtree(test_tree / "gtFine/test")
    sources = find_sources(test_tree, "test")
    assert [s.file_name for s in sources] == [s.file_name for s in labelled]
    assert _problems(test_tree, "test") == []
    for source in sources:
        assert source.instance_ids().shape == source.size == (6, 10)
        assert not source.instance_ids().any() and source.fingerprint
    with pytest.raises(SourceError, match="no leftImg8bit/train"):
        find_sources(test_tree, "train")


def test_id_maps_of_a_test_split_are_complete_where_there_are_some(test_tree):
    path = find_sources(test_tree, "test")[0].ids_path
    path.unlink()
    assert _problems(test_tree, "test") == [f"{path}: missing"]
