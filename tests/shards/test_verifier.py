"""Verification: every difference is found and named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from d2_cityscapes.data import ShardError
from d2_cityscapes.shards.verifier import verify_shards


@pytest.mark.parametrize("workers", [1, 2])
def test_sound_shards_pass_and_all_changed_sources_are_listed(sources, coded_folder, workers):
    verify_shards(sources, coded_folder, split="train", workers=workers)
    other_ids = sources[5].ids.copy()
    other_ids[0, 0] = 11
    changed = list(sources)
    changed[2] = replace(sources[2], pixels=sources[2].pixels ^ 1)
    changed[5] = replace(sources[5], ids=other_ids)
    with pytest.raises(ShardError) as caught:
        verify_shards(changed, coded_folder, split="train", workers=workers)
    text = str(caught.value)
    assert text.startswith("2 problems: ") and "\n" not in text
    assert (
        f"train_01of03.safetensors: {sources[2].file_name} differs from its source (image)" in text
    )
    assert f"{sources[5].file_name} differs from its source (instance ids" in text


def test_every_damaged_file_is_named(sources, folder):
    for k in (1, 3):
        path = folder / f"train_0{k}of03.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    (folder / "train_02of03.safetensors").unlink()
    with pytest.raises(ShardError) as caught:
        verify_shards(sources, folder, split="train")
    text = str(caught.value)
    assert text.count("SHA-256 differs from index.json") == 2
    assert "train_01of03" in text and "train_03of03" in text
    assert "train_02of03.safetensors: No such file" in text


def test_a_wrong_table_is_found_though_its_checksums_are_right(sources, folder, monkeypatch):
    shift = np.array([1, 0, 1, 0])

    def shifted(instances):
        return replace(instances, boxes=instances.boxes + shift)

    from d2_cityscapes.shards import verifier as shard_verifier

    right = shard_verifier.find_instances
    monkeypatch.setattr(shard_verifier, "find_instances", lambda *a: shifted(right(*a)))
    with pytest.raises(ShardError, match=r"7 problems.*\(instance table\)"):
        verify_shards(sources, folder, split="train")


def test_other_images_are_refused(sources, folder):
    for wrong in (sources[:6], sources[::-1], [*sources, sources[0]]):
        with pytest.raises(ShardError, match="hold other images"):
            verify_shards(wrong, folder, split="train")
    path = folder / "index.json"
    index = json.loads(path.read_text())
    del index["shards"][1]
    path.write_text(json.dumps(index))
    with pytest.raises(ShardError, match="hold other images"):
        verify_shards(sources, folder, split="train")
