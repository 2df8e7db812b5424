"""One shard file: safe after a fork, and never silent garbage."""

from __future__ import annotations

import json
import os
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jpeg2000
import numpy as np
import pytest

from d2_cityscapes.data import ShardError, ShardReader, write_shards
from d2_cityscapes.labels import CITYSCAPES, LabelTable
from d2_cityscapes.shards.file import ShardFile, head_checksum
from d2_cityscapes.shards.verifier import verify_shards

NAME = "train_01of03.safetensors"


def test_reader_survives_a_fork(folder):
    reader = ShardReader(folder)
    expected = reader[3].image.sum().item()
    child = os.fork()
    if child == 0:  # the child shares the parent's open file
        os._exit(0 if all(reader[3].image.sum().item() == expected for _ in range(50)) else 1)
    assert all(reader[3].image.sum().item() == expected for _ in range(50))
    assert os.waitpid(child, 0)[1] == 0


def _read_everything(path):
    reader = ShardReader(path)
    return [reader[i] for i in range(len(reader))]


def _header(content: bytes) -> tuple[dict, int]:
    """The header of a shard and where it ends."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), end


def _pixels_begin(content: bytes) -> int:
    """Where the tables end, too: the offset of the first tensor that is not a table."""
    header, end = _header(content)
    return end + header["annotation_blob"]["data_offsets"][0]


def test_truncation_anywhere_is_a_shard_error_at_once(coded_folder):
    path = coded_folder / NAME
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 50).astype(int):
        path.write_bytes(content[:size])
        with pytest.raises(ShardError, match="train_01of03"):
            ShardReader(path).file_names  # noqa: B018


def test_flipped_bytes_in_front_of_the_pixels_are_a_shard_error_at_once(coded_folder):
    path = coded_folder / NAME
    content = path.read_bytes()
    rng = random.Random(4)
    begin = _pixels_begin(content)
    for position in {*range(24), *(rng.randrange(begin) for _ in range(200))}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ShardError, match="train_01of03"):
            ShardReader(path).file_names  # noqa: B018


def test_flipped_bytes_anywhere_never_crash(coded_folder, sources):
    """Compressed pixels are right or a ShardError; --verify finds every flipped byte."""
    path = coded_folder / NAME
    expected = _read_everything(path)
    content = path.read_bytes()
    raw_images = "images" in _header(content)[0]
    rng = random.Random(3)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            for record, right in zip(_read_everything(path), expected, strict=True):
                assert record.instance_ids.equal(right.instance_ids)
                assert raw_images or record.image.equal(right.image)
        except ShardError as error:
            assert "train_01of03" in str(error)
        with pytest.raises(ShardError, match="train_01of03"):
            verify_shards(sources, coded_folder, split="train")


def _rewrite(path, change):
    """Change the header of a shard, and let its checksum follow."""
    content = path.read_bytes()
    header, end = _header(content)
    change(header)
    tables = content[end : _pixels_begin(content)]
    header["__metadata__"]["checksum"] = head_checksum(header, tables)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["__metadata__"].update(version="1"), "shard format version 1, not 2"),
        (lambda h: h["__metadata__"].pop("classes"), "header is damaged"),
        (lambda h: h["__metadata__"].update(image_size="[12, 21]"), r"images has shape .*12, 21"),
        (lambda h: h["__metadata__"].update(file_names='["a"]'), "among 1 images"),
        (lambda h: h["__metadata__"].update(file_names="7"), "header is damaged"),
        (lambda h: h.pop("images"), "tensor images is missing"),
        (lambda h: h.pop("instance_ids"), "header is damaged"),
        (lambda h: h["instance_boxes"].update(shape=[4, -1]), "header is damaged"),
    ],
)
def test_headers_that_do_not_fit_are_a_shard_error(folder, change, message):
    _rewrite(folder / NAME, change)
    with pytest.raises(ShardError, match=f"{NAME}: .*{message}.*d2c prepare again"):
        ShardReader(folder / NAME)[0]


def test_other_classes_are_named(folder):
    classes = (replace(CITYSCAPES.classes[0], name="street"), *CITYSCAPES.classes[1:])
    other = LabelTable("streets", classes, CITYSCAPES.label_names)
    with pytest.raises(
        ShardError,
        match=r"another label table \(cityscapes\) than streets: class 0 is 'road' and 'street'",
    ):
        ShardFile(folder / NAME, other).table(0)
    fewer = LabelTable("few", CITYSCAPES.classes[:18], CITYSCAPES.label_names)
    with pytest.raises(ShardError, match="class 18 is 'bicycle' and None"):
        ShardFile(folder / NAME, fewer).table(0)


@jpeg2000.needed
def test_a_codec_that_is_not_installed_is_said_with_the_file(sources, tmp_path, monkeypatch):
    (path,) = write_shards(sources, tmp_path, split="train", image_codec="jpeg2000-ht")
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ShardError, match=f"{path.name}: .*pip install"):
        ShardReader(path).image(0)
    assert ShardReader(path).instance_ids(0).shape == (12, 20)


def test_something_else_is_not_a_shard(tmp_path):
    for content in (b"", b"x" * 7, bytes(8), bytes(4096), b"\xff" * 64, b"\x02" + bytes(7) + b"{}"):
        (tmp_path / "x.safetensors").write_bytes(content)
        with pytest.raises(ShardError, match=r"x\.safetensors"):
            ShardReader(tmp_path / "x.safetensors")[0]


@pytest.mark.parametrize("codec", ["zstd", "raw"])
def test_ids_beyond_the_table_are_a_shard_error(sources, tmp_path, codec):
    """65535 is no id of any table, and lookups would end in an IndexError."""
    odd = replace(sources[0], ids=np.full(sources[0].size, 33_999, np.uint16))
    (path,) = write_shards([odd], tmp_path, split="train", annotation_codec=codec)
    smaller = LabelTable("cityscapes", CITYSCAPES.classes, CITYSCAPES.label_names[:-1])
    shard = ShardFile(path, CITYSCAPES)
    assert shard.id_map(0).max() == 33_999
    shard._label_table = smaller
    for read in (shard.id_map, shard.instance_ids):
        with pytest.raises(
            ShardError, match=r"instance ids of record 0: 33999 is not in the table"
        ):
            read(0)


def test_a_system_without_positioned_reads(coded_folder, monkeypatch):
    """Windows: whole shards are read, at several places at once, and are not called damaged."""
    expected = _read_everything(coded_folder / NAME)
    monkeypatch.delattr("os.preadv")
    monkeypatch.delattr("os.pread")
    reader = ShardReader(coded_folder / NAME)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(reader.__getitem__, [*range(len(reader))] * 20))
    for record, right in zip(found, expected * 20, strict=True):
        assert record.image.equal(right.image) and record.instance_ids.equal(right.instance_ids)
    content = (coded_folder / NAME).read_bytes()
    (coded_folder / NAME).write_bytes(content[:-1])
    with pytest.raises(ShardError, match=r"bytes, .* expected"):
        ShardReader(coded_folder / NAME)[0]


def test_a_defect_of_ours_is_not_called_damage(folder, monkeypatch):
    monkeypatch.setattr("d2_cityscapes.shards.file.check_header", None)
    with pytest.raises(TypeError):
        ShardReader(folder / NAME)[0]


@pytest.mark.parametrize("row", [3, 1000, -1])
def test_a_record_that_an_index_lists_but_no_shard_has(coded_folder, row):
    shard = ShardFile(coded_folder / NAME, CITYSCAPES)
    for read in (shard.image, shard.instance_ids, shard.id_map, shard.table, shard.image_size):
        with pytest.raises(ShardError, match=f"has 3 records, no record {row}"):
            read(row)
