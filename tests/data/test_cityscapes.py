"""The official tree: found in order, and everything wrong listed by path."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.data.cityscapes import CityscapesError, find_sources


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


def test_every_problem_is_listed(tree):
    (tree / "gtFine/train/bochum/bochum_000000_000313_gtFine_instanceIds.png").unlink()
    small = tree / "gtFine/train/aachen/aachen_000002_000019_gtFine_instanceIds.png"
    Image.fromarray(np.zeros((3, 5), np.uint16)).save(small)
    broken = tree / "leftImg8bit/train/aachen/aachen_000010_000019_leftImg8bit.png"
    broken.write_bytes(b"not a picture")
    with pytest.raises(CityscapesError) as caught:
        find_sources(tree, "train")
    text = str(caught.value)
    assert text.startswith("3 problems") and "\n" not in text
    assert "bochum_000000_000313_gtFine_instanceIds.png" in text
    assert "(3, 5), its image (6, 10)" in text
    assert f"{broken}: not a readable PNG" in text


def test_a_truncated_picture_is_named(tree):
    path = tree / "leftImg8bit/train/aachen/aachen_000002_000019_leftImg8bit.png"
    path.write_bytes(path.read_bytes()[:-40])
    source = find_sources(tree, "train")[0]
    with pytest.raises(CityscapesError, match=r"aachen_000002_000019_leftImg8bit.png.*download"):
        source.image()


def test_a_wrong_folder_and_a_wrong_split(tree):
    with pytest.raises(CityscapesError, match="leftImg8bit/train"):
        find_sources(tree / "gtFine", "train")
    with pytest.raises(CityscapesError, match="Cityscapes has train, val, train_extra"):
        find_sources(tree, "test")
