"""The index can be restored from the shards, and what cannot be trusted is written anew."""

from __future__ import annotations

import json

import pytest

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.errors import D2CityscapesError
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.index import fingerprint, load_entries


def _state(folder):
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.safetensors")}


def _drop_entry(folder, name):
    path = folder / "index.json"
    index = json.loads(path.read_text())
    index["shards"] = [entry for entry in index["shards"] if entry["file"] != name]
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _drop_entry(folder, "train_02of03.safetensors"),
        lambda folder: (folder / "index.json").unlink(),
        lambda folder: (folder / "index.json").write_bytes(b"{"),
        lambda folder: (folder / "index.json").write_text('{"version": "1", "shards": []}'),
        lambda folder: (folder / "index.json").write_text('{"version": "2", "shards": [{}]}'),
    ],
)
def test_whole_shards_without_an_entry_are_adopted(sources, folder, damage):
    write_shards(sources[:3], folder, split="val", partitions=2)
    index, shards = (folder / "index.json").read_bytes(), _state(folder)
    damage(folder)
    write_shards(sources, folder, split="train", partitions=3)
    assert _state(folder) == shards
    assert (folder / "index.json").read_bytes() == index


def test_an_adopted_shard_of_other_images_is_refused(sources, folder):
    (folder / "index.json").unlink()
    for more in ({"annotation_codec": "raw"}, {"image_codec": "zstd"}):
        with pytest.raises(ShardError, match=r"other images or settings \(train_01of03"):
            write_shards(sources, folder, split="train", partitions=3, **more)
    with pytest.raises(ShardError, match=r"other images or settings \(train_01of03"):
        write_shards(sources[1:], folder, split="train", partitions=3)
    assert not (folder / "index.json").exists()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_truncated_shard_is_written_anew(sources, folder, size):
    path = folder / "train_02of03.safetensors"
    content, shards = path.read_bytes(), _state(folder)
    path.write_bytes(content[:size])
    write_shards(sources, folder, split="train", partitions=3)
    assert path.read_bytes() == content
    again = _state(folder)
    assert [name for name in again if again[name] != shards[name]] == [path.name]


def test_shards_of_other_splits_keep_their_entries_even_when_lost(sources, folder):
    (folder / "train_02of03.safetensors").unlink()
    write_shards(sources[:3], folder, split="val", partitions=2)
    with pytest.raises(ShardError, match=r"train_02of03.*missing shard"):
        ShardReader(folder, split="train")
    entries, changed = load_entries(folder, ["train"], CITYSCAPES)
    assert "train_02of03.safetensors" not in entries and len(entries) == 4 and changed


def test_deleted_shards_are_forgotten(sources, folder):
    for path in folder.glob("*.safetensors"):
        path.unlink()
    write_shards(sources[:2], folder, split="train", partitions=2)
    assert ShardReader(folder).file_names == [s.file_name for s in sources[:2]]


def test_fingerprints_follow_names_sources_and_their_order(sources):
    made = [fingerprint(part) for part in (sources, sources[:6], sources[::-1])]
    assert len({*made}) == 3 and made[0] == fingerprint(list(sources))


def test_an_unreadable_source_has_no_fingerprint():
    class Gone:
        file_name = "gone.png"

        @property
        def fingerprint(self):
            raise D2CityscapesError("gone.png: missing")

    assert fingerprint([Gone()]) == ""
