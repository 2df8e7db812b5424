"""Shards: round trip, laziness, and one clear error for everything that can be wrong."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.labels.instances import find_instances

H, W = 12, 20


@pytest.mark.parametrize("codec", ["zstd", "raw"])
def test_round_trip(sources, tmp_path, codec):
    write_shards(sources, tmp_path, split="train", partitions=3, annotation_codec=codec)
    reader = ShardReader(tmp_path, split="train")
    assert len(reader) == 7
    assert reader.file_names == [s.file_name for s in sources]
    for source, record in zip(sources, (reader[i] for i in range(7)), strict=True):
        assert record.file_name == source.file_name
        np.testing.assert_array_equal(record.image.numpy(), source.pixels.transpose(2, 0, 1))
        assert record.instance_ids.dtype.is_signed and record.instance_ids.dtype.itemsize == 4
        np.testing.assert_array_equal(record.instance_ids.numpy(), source.ids)
        expected = find_instances(source.ids, CITYSCAPES)
        for column in ("ids", "classes", "boxes", "areas", "crowd"):
            np.testing.assert_array_equal(getattr(record, column), getattr(expected, column))


def test_partitions_are_contiguous_with_the_larger_ones_first(folder):
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    assert names == [f"train_{k:02d}of03.safetensors" for k in (1, 2, 3)]
    assert [len(ShardReader(folder / name)) for name in names] == [3, 2, 2]
    one = ShardReader(folder, split="train", partitions=[2])
    assert one.file_names == ShardReader(folder, split="train").file_names[3:5]


def test_records_are_the_callers_own(folder):
    reader = ShardReader(folder)
    first = reader[0]
    before = first.image.clone(), first.instance_ids.clone(), first.boxes.copy()
    first.image.zero_(), first.instance_ids.zero_(), first.boxes.fill(0)
    again = reader[0]
    assert again.image.equal(before[0]) and again.instance_ids.equal(before[1])
    np.testing.assert_array_equal(again.boxes, before[2])


def test_reader_is_lazy_and_can_be_pickled(folder):
    size = len(pickle.dumps(ShardReader(folder)))
    used = ShardReader(folder)
    used[0]
    clone = pickle.loads(pickle.dumps(used))
    assert len(pickle.dumps(used)) == size < 10_000
    assert clone[6].image.equal(used[6].image) and clone[-1].image.equal(used[6].image)
    with pytest.raises(IndexError):
        used[7]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "index.json").unlink(), "no index.json"),
        (lambda folder: (folder / "index.json").write_text("{}"), "not a shard index"),
        (lambda folder: (folder / "train_02of03.safetensors").unlink(), "missing shard"),
        (lambda folder: (folder / "train_02of03.safetensors").write_bytes(b"x"), "index.json says"),
    ],
)
def test_a_damaged_folder_is_refused_at_once(folder, damage, message):
    damage(folder)
    with pytest.raises(ShardError, match=message):
        ShardReader(folder)


def test_unknown_split_and_partition(folder):
    with pytest.raises(ShardError, match="no shards of split 'test'"):
        ShardReader(folder, split="test")
    with pytest.raises(ShardError, match="no partition 4"):
        ShardReader(folder, split="train", partitions=[3, 4])
    with pytest.raises(ShardError, match="nowhere"):
        ShardReader(folder / "nowhere")
    with pytest.raises(ShardError, match="nowhere"):
        ShardReader(folder / "nowhere.safetensors")[0]


def test_a_split_that_is_half_packed_is_refused(folder):
    index = json.loads((folder / "index.json").read_text())
    del index["shards"][1]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(ShardError, match=r"2 of 3 shards of split 'train'.*did not finish"):
        ShardReader(folder)
    assert len(ShardReader(folder, split="train", partitions=[1, 3])) == 5


def test_another_label_table_is_refused(folder):
    other = LabelTable("idd", CITYSCAPES.classes[:5], CITYSCAPES.label_names)
    with pytest.raises(ShardError, match=r"label table \(cityscapes\) than idd"):
        ShardReader(folder, table=other)[0]
