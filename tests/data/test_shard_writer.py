"""Writing shards: deterministic, whole or not at all, resumable, verifiable."""

from __future__ import annotations

import numpy as np
import pytest

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.data.shard_writer import verify_shards


def test_same_bytes_whatever_the_workers(sources, folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_shards(sources, other, split="train", partitions=3, workers=3)
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes()


def test_a_finished_shard_is_not_written_again_and_a_lost_one_is(sources, folder):
    times = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    (folder / "train_02of03.safetensors").unlink()
    write_shards(sources, folder, split="train", partitions=3)
    again = {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}
    assert [name for name in again if again[name] != times[name]] == ["train_02of03.safetensors"]


def test_a_failing_source_leaves_only_whole_shards(sources, tmp_path, array_source):
    bad_ids = np.full(sources[0].size, 99_999)
    bad = array_source("zurich_000001_000019_leftImg8bit.png", sources[0].pixels, bad_ids)
    with pytest.raises(ShardError, match=r"zurich_000001.*99999.*label table"):
        write_shards([*sources, bad], tmp_path, split="train", partitions=4)
    written = sorted(p.name for p in tmp_path.iterdir())
    assert written == ["index.json"] + [f"train_{k:02d}of04.safetensors" for k in (1, 2, 3)]
    write_shards([*sources, sources[0]], tmp_path / "b", split="train", partitions=4)


def test_other_splits_are_kept_and_other_images_refused(sources, folder):
    write_shards(sources[:4], folder, split="val", partitions=2)
    assert len(ShardReader(folder, split="train")) == 7
    assert len(ShardReader(folder, split="val")) == 4
    assert len(ShardReader(folder)) == 11
    with pytest.raises(ShardError, match="made from other images"):
        write_shards(sources[:6], folder, split="train", partitions=3)
    assert len(ShardReader(folder, split="train")) == 7


def test_verify_finds_a_changed_byte_and_a_changed_source(sources, folder, array_source):
    verify_shards(sources, folder, split="train")
    changed = array_source(sources[2].file_name, sources[2].pixels ^ 1, sources[2].ids)
    with pytest.raises(ShardError, match="differs from its source"):
        verify_shards([*sources[:2], changed, *sources[3:]], folder, split="train")
    path = folder / "train_03of03.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match="SHA-256"):
        verify_shards(sources, folder, split="train")


def test_too_little_room_is_said_before_anything_is_written(sources, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(ShardError, match=r"needs .* GB, the disk has"):
        write_shards(sources, tmp_path / "new", split="train")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotation_codec": "png"}, "annotation codec 'png'; use zstd or raw"),
        ({"split": "val", "sources": []}, "no images"),
    ],
)
def test_unusable_arguments(sources, tmp_path, change, message):
    arguments = {"sources": sources, "split": "train"} | change
    with pytest.raises(ShardError, match=message):
        write_shards(arguments.pop("sources"), tmp_path, **arguments)


def test_images_of_two_sizes_are_refused(sources, tmp_path, array_source):
    wide = array_source("wide.png", np.zeros((12, 24, 3), np.uint8), np.zeros((12, 24), int))
    with pytest.raises(ShardError, match="one size"):
        write_shards([*sources, wide], tmp_path, split="train")
