"""Encoding a shard: plain safetensors, the documented layout, whatever the codec."""

from __future__ import annotations

import json

import jpeg2000
import numpy as np
import pytest
from safetensors import safe_open

from d2_cityscapes.data import ShardReader, write_shards
from d2_cityscapes.labels import CITYSCAPES
from d2_cityscapes.shards.image_codecs import CODECS, decompress


def _open(folder):
    return safe_open(folder / "train_01of01.safetensors", framework="np")


def test_raw_images_and_metadata_in_plain_safetensors(sources, tmp_path):
    write_shards(sources, tmp_path, split="train")
    with _open(tmp_path) as f:
        images = f.get_tensor("images")
        np.testing.assert_array_equal(images, [s.pixels.transpose(2, 0, 1) for s in sources])
        metadata = f.metadata()
        assert (metadata["version"], metadata["split"]) == ("2", "train")
        assert metadata["label_table_hash"] == CITYSCAPES.hash
        assert json.loads(metadata["classes"])[0] == "road"
        assert json.loads(metadata["file_names"]) == [s.file_name for s in sources]
        frames, offsets = f.get_tensor("annotation_blob"), f.get_tensor("blob_offsets")
        for source, first, last in zip(sources, offsets, offsets[1:], strict=False):
            ids = decompress(frames[first:last].tobytes(), 2 * 12 * 20)
            np.testing.assert_array_equal(np.frombuffer(ids, "<u2").reshape(12, 20), source.ids)


@pytest.mark.parametrize("codec", jpeg2000.CODECS)
@pytest.mark.parametrize("annotation_codec", ["zstd", "raw"])
def test_compressed_images_in_plain_safetensors(sources, tmp_path, codec, annotation_codec):
    write_shards(
        sources, tmp_path, split="train", image_codec=codec, annotation_codec=annotation_codec
    )
    with _open(tmp_path) as f:
        assert "images" not in f.keys()  # noqa: SIM118
        assert f.metadata()["image_codec"] == codec
        blob, offsets = f.get_tensor("image_blob"), f.get_tensor("image_offsets")
        assert offsets[0] == 0 and offsets[-1] == len(blob)
        for source, first, last in zip(sources, offsets, offsets[1:], strict=False):
            decoded = CODECS[codec].decode(blob[first:last].tobytes(), (12, 20))
            np.testing.assert_array_equal(decoded, source.pixels.transpose(2, 0, 1))
        if annotation_codec == "raw":
            np.testing.assert_array_equal(f.get_tensor("annotations"), [s.ids for s in sources])
    for source, record in zip(sources, ShardReader(tmp_path), strict=False):
        np.testing.assert_array_equal(record.image.numpy(), source.pixels.transpose(2, 0, 1))
        np.testing.assert_array_equal(record.instance_ids.numpy(), source.ids)


@pytest.mark.parametrize("codec", jpeg2000.CODECS)
def test_compressed_shards_of_smooth_pictures_are_smaller(array_source, tmp_path, codec):
    y, x = np.mgrid[:64, :96]
    smooth = np.stack([x, y, x + y], axis=2).astype(np.uint8)
    source = array_source("smooth.png", smooth, np.full((64, 96), 7))
    raw, compressed = (
        write_shards([source], tmp_path / c, split="train", image_codec=c)[0].stat().st_size
        for c in ("none", codec)
    )
    assert compressed < 0.6 * raw


def test_tables_stand_first(sources, tmp_path):
    """All of them in front of every pixel, and each aligned to its type."""
    path = write_shards(sources, tmp_path, split="train", image_codec="zstd")[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    assert names[-2:] == ["annotation_blob", "image_blob"]
    assert all(name.startswith(("instance_", "blob_", "image_offsets")) for name in names[:-2])
    sizes = {"I64": 8, "I32": 4}
    for name in names[:-2]:
        begin = 8 + length + header[name]["data_offsets"][0]
        assert begin % sizes.get(header[name]["dtype"], 1) == 0


def test_images_without_objects(array_source, tmp_path):
    sky = [
        array_source(f"{i}.png", np.zeros((4, 6, 3), np.uint8), np.full((4, 6), 23))
        for i in range(2)
    ]
    write_shards(sky, tmp_path, split="train")
    for record in (ShardReader(tmp_path)[i] for i in range(2)):
        assert len(record.instances) == 0 and record.boxes.shape == (0, 4)
        assert (record.instance_ids == 23).all()
