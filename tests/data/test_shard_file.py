"""One shard file: plain safetensors, safe after a fork, and never silent garbage."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
from safetensors import safe_open

from d2_cityscapes.data import ShardError, ShardReader
from d2_cityscapes.data.shard_writer import verify_shards
from d2_cityscapes.labels import CITYSCAPES


def test_a_shard_is_a_plain_safetensors_file(folder, sources):
    with safe_open(folder / "train_01of03.safetensors", framework="pt") as f:
        np.testing.assert_array_equal(
            f.get_slice("images")[1].numpy(), sources[1].pixels.transpose(2, 0, 1)
        )
        assert f.metadata()["label_table_hash"] == CITYSCAPES.hash
        assert json.loads(f.metadata()["classes"])[0] == "road"


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
    for i in range(len(reader)):
        reader[i]


def test_truncation_anywhere_is_a_shard_error(folder):
    path = folder / "train_01of03.safetensors"
    content = path.read_bytes()
    for size in np.linspace(0, len(content) - 1, 50).astype(int):
        path.write_bytes(content[:size])
        with pytest.raises(ShardError, match="train_01of03"):
            _read_everything(path)


def test_flipped_bytes_never_crash(folder, sources):
    """A flipped byte is a ShardError on reading, or at the latest in the checksum of --verify."""
    path = folder / "train_01of03.safetensors"
    content = path.read_bytes()
    rng = random.Random(3)
    for position in [*range(0, 400, 8), *(rng.randrange(len(content)) for _ in range(150))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            _read_everything(path)
        except ShardError as error:
            assert "train_01of03" in str(error)
        with pytest.raises(ShardError, match="train_01of03"):
            verify_shards(sources, folder, split="train")
