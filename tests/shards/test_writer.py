"""Writing shards: deterministic, checked first, whole or not at all, resumable."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import jpeg2000
import numpy as np
import pytest

from d2_cityscapes import files
from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.files import lock_folder
from d2_cityscapes.shards.verifier import verify_shards
from d2_cityscapes.shards.writer import write_splits
from d2_cityscapes.sources.errors import SourceError


def _content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def _names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("image_codec", ["none", *jpeg2000.CODECS])
@pytest.mark.parametrize("annotation_codec", ["zstd", "raw"])
def test_same_bytes_whatever_the_workers(sources, tmp_path, image_codec, annotation_codec):
    written = []
    for workers in (1, 3):
        output = tmp_path / str(workers)
        write_shards(
            sources,
            output,
            split="train",
            partitions=2,
            image_codec=image_codec,
            annotation_codec=annotation_codec,
            workers=workers,
        )
        written.append(_content(output))
    assert written[0] == written[1] and len(written[0]) == 3


def test_a_finished_shard_is_not_written_again_and_a_lost_one_is(sources, folder):
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    (folder / "train_02of03.safetensors").unlink()
    write_shards(sources, folder, split="train", partitions=3)
    again = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    assert [name for name in again if again[name] != times[name]] == ["train_02of03.safetensors"]


def test_all_splits_are_checked_before_the_first_is_packed(sources, tmp_path, array_source):
    bad_ids = np.full(sources[0].size, 99_999)
    bad = array_source("zurich_000001_000019_leftImg8bit.png", sources[0].pixels, bad_ids)
    splits = {"train": sources, "val": [*sources[:2], bad]}
    with pytest.raises(SourceError, match=r"1 problem: zurich_000001.*99999.*nothing was written"):
        write_splits(splits, tmp_path / "new", partitions={"train": 4, "val": 1})
    assert not (tmp_path / "new").exists()
    splits["val"].pop()
    written = write_splits(splits, tmp_path / "new", partitions={"train": 4, "val": 1})
    assert [path.name for path in written["val"]] == ["val_01of01.safetensors"]
    assert len(written["train"]) == 4 and len(ShardReader(tmp_path / "new")) == 9


def test_only_what_is_still_to_be_packed_is_checked(sources, folder, array_source):
    class Gone(array_source):
        def instance_ids(self):
            raise AssertionError("looked at again")

    packed = [Gone(s.file_name, s.pixels, s.ids) for s in sources[:3]]
    (folder / "train_02of03.safetensors").unlink()
    write_shards([*packed, *sources[3:]], folder, split="train", partitions=3)
    assert len(ShardReader(folder)) == 7


def test_an_image_that_fails_late_leaves_only_whole_shards(sources, tmp_path, array_source):
    """Images are not decoded by the check."""
    gray = array_source("gray.png", sources[0].pixels[:, :, 0], sources[0].ids)
    with pytest.raises(ShardError, match=r"gray.png: uint8 image of \(12, 20\), expected"):
        write_shards([*sources, gray], tmp_path, split="train", partitions=4)
    assert _names(tmp_path) == ["index.json", *(f"train_0{k}of04.safetensors" for k in (1, 2, 3))]


def test_other_splits_are_kept_and_other_images_refused(sources, folder):
    write_shards(sources[:4], folder, split="val", partitions=2)
    assert len(ShardReader(folder, split="train")) == 7
    assert len(ShardReader(folder, split="val")) == 4
    assert len(ShardReader(folder)) == 11
    with pytest.raises(ShardError, match="made from other images"):
        write_shards(sources[:6], folder, split="train", partitions=3)
    with pytest.raises(ShardError, match=r"made from other images.*01of03.*02of03.*03of03"):
        write_shards(sources, folder, split="train", partitions=2)
    with pytest.raises(ShardError, match="made from other images or settings"):
        write_shards(sources, folder, split="train", partitions=3, image_codec="zstd")
    assert len(ShardReader(folder, split="train")) == 7


@pytest.mark.parametrize(
    ("codec", "message"),
    [
        ("none", r"needs 5.12e-06 GB, the disk has 1e-06 GB free"),
        ("zstd", r"needs about \(from 8 images a split\) .* GB, the disk has 1e-06 GB"),
    ],
)
def test_too_little_room_is_said_before_anything_is_written(
    sources, tmp_path, monkeypatch, codec, message
):
    """7 images of 12 x 20 px: 5040 bytes, and 12 each for the annotations."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ShardError, match=message):
        write_shards(sources, tmp_path / "new", split="train", image_codec=codec)
    assert not (tmp_path / "new").exists()


@pytest.fixture
def large(array_source):
    """Four images that take 1.2 MB raw."""
    rng = np.random.default_rng(2)
    return [
        array_source(
            f"ulm_{i:06d}_000019_leftImg8bit.png",
            rng.integers(0, 256, (250, 400, 3), dtype=np.uint8),
            np.full((250, 400), 7),
        )
        for i in range(4)
    ]


def test_a_disk_that_is_too_small_is_seen_in_time(large, small_disk):
    for codec in ("none", "zstd"):
        with pytest.raises(ShardError, match=r"the disk has 0\.0010\d GB free"):
            write_shards(large, small_disk, split="train", image_codec=codec)
    assert _names(small_disk) == []


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_was_there(
    large, sources, small_disk, monkeypatch
):
    write_shards(sources, small_disk, split="val", partitions=2)
    before = _content(small_disk)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1e9))
        with pytest.raises(
            D2CityscapesError,
            match=r"train_01of01.safetensors: cannot be written \((No space left|File too large)",
        ):
            write_shards(large, small_disk, split="train")
    assert _content(small_disk) == before
    verify_shards(sources, small_disk, split="val")
    write_shards(large[:2], small_disk, split="train")
    assert len(ShardReader(small_disk)) == 9


def _run_and_die(sources, output, function, count, after):
    """Pack in a child process that kills itself at the count-th call of ``os.function``."""
    child = os.fork()
    if child:
        return os.WTERMSIG(os.waitpid(child, 0)[1])
    original, calls = getattr(files.os, function), 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(files.os, function, counted)
    write_shards(sources, output, split="train", partitions=3)
    os._exit(0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_killed_at_any_file_it_is_finished_by_the_same_call(sources, tmp_path, function, after):
    """Three shards and the index after each: six files, each flushed and then renamed."""
    write_shards(sources, tmp_path / "whole", split="train", partitions=3)
    expected = _content(tmp_path / "whole")
    for count in range(1, 7):
        output = tmp_path / str(count)
        assert _run_and_die(sources, output, function, count, after) == signal.SIGKILL
        finished = {p.name: p.stat().st_ino for p in output.glob("*.safetensors")}
        renamed = count if (function, after) == ("replace", True) else count - 1
        assert len(finished) == (renamed + 1) // 2
        write_shards(sources, output, split="train", partitions=3)
        assert _content(output) == expected
        assert finished.items() <= {p.name: p.stat().st_ino for p in output.iterdir()}.items()


@pytest.mark.parametrize("content", ['{"mine": 1}', "", "[1, 2]"])
def test_an_index_of_something_else_is_not_overwritten(sources, tmp_path, content):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ShardError, match=r"index\.json: no index of shards"):
        write_shards(sources, tmp_path, split="train")
    assert (tmp_path / "index.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_two_packers_in_one_folder(sources, folder):
    with (
        lock_folder(folder),
        pytest.raises(D2CityscapesError, match="another process is writing here"),
    ):
        write_shards(sources, folder, split="val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotation_codec": "png"}, "annotation codec 'png'; use zstd or raw"),
        ({"image_codec": "png"}, "image codec 'png'; use none, zstd or jpeg2000-ht"),
        ({"split": "val", "sources": []}, "no images"),
        ({"partitions": 0}, "0 partitions of train; give 1 or more"),
        ({"workers": 0}, "number of workers is 0"),
    ],
)
def test_unusable_arguments(sources, tmp_path, change, message):
    arguments = {"sources": sources, "split": "train"} | change
    with pytest.raises(D2CityscapesError, match=message):
        write_shards(arguments.pop("sources"), tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_codec_that_is_not_installed_is_said_first(sources, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(D2CityscapesError, match="pip install"):
        write_shards(sources, tmp_path / "new", split="train", image_codec="jpeg2000-ht")
    assert not (tmp_path / "new").exists()


def test_images_of_two_sizes_are_refused(sources, tmp_path, array_source):
    wide = array_source("wide.png", np.zeros((12, 24, 3), np.uint8), np.zeros((12, 24), int))
    with pytest.raises(SourceError, match=r"wide.png: \(12, 24\).*one size"):
        write_shards([*sources, wide], tmp_path, split="train")


@pytest.mark.parametrize("name", ["{}", "{}.png", "{}.JPG", "{}_gtFine_instanceIds.png"])
def test_two_images_of_one_name_are_refused(sources, tmp_path, name):
    """In two cities perhaps, or in two formats: predictions and scores go by the name."""
    first = replace(sources[0], file_name="000000_leftImg8bit.png")
    second = replace(sources[1], file_name=name.format("000000"))
    with pytest.raises(SourceError, match=r"train has two images called 000000: .*rename them"):
        write_shards([first, second], tmp_path / "new", split="train")
    assert not (tmp_path / "new").exists()
    write_splits({"train": [first], "val": [second]}, tmp_path, partitions={"train": 1, "val": 1})


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a\\b.png", "", "..", "C:a.png", "...png"])
def test_names_that_leave_a_folder_are_not_packed(sources, tmp_path, name):
    with pytest.raises(SourceError, match="is not the name of a file"):
        write_shards([replace(sources[0], file_name=name)], tmp_path / "new", split="train")


@dataclass(frozen=True)
class Fingerprinted:
    """A source with a fingerprint in the form of today, and in that of older shards."""

    source: Any
    fingerprint: str
    earlier_fingerprint: str

    def __getattr__(self, name):
        return getattr(self.__dict__["source"], name)


def test_shards_of_an_earlier_version_are_kept_with_a_word(sources, tmp_path, caplog):
    plain = [Fingerprinted(s, "6+4", "6+4") for s in sources]
    write_shards(plain, tmp_path, split="train", partitions=2)
    before = _content(tmp_path)
    summed = [Fingerprinted(s, "6+4 1a2b 3c4d", "6+4") for s in sources]
    write_shards(summed, tmp_path, split="train", partitions=2)
    assert _content(tmp_path) == before
    assert "packed by an earlier version" in caplog.text and "--verify" in caplog.text
    other = [Fingerprinted(s, "6+5 1a2b 3c4d", "6+5") for s in sources]
    with pytest.raises(ShardError, match="made from other images"):
        write_shards(other, tmp_path, split="train", partitions=2)


def test_room_for_more_pixels_than_any_picture_has(sources, tmp_path):
    @dataclass(frozen=True)
    class Wide(type(sources[0])):
        canvas = (100_000, 100_000)

    wide = Wide(sources[0].file_name, sources[0].pixels, sources[0].ids)
    with pytest.raises(SourceError, match=r"takes \(100000, 100000\) \(H, W\), more than"):
        write_shards([wide], tmp_path / "new", split="train")
