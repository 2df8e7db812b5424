"""What there is to predict: folders, patterns, videos, cameras and shards, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.engine.prediction import PictureError, find_pictures
from d2_cityscapes.engine.prediction.marks import MARK
from d2_cityscapes.png import write_picture

RGB = np.random.default_rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_folders_and_what_is_passed_over(tmp_path: Path) -> None:
    names = ["a.png", "B.JPG", "c.jpeg", "d.bmp", "e.WEBP", "f.tif", "city/g.TIFF", "h_drawn.jpg"]
    hidden = ["._a.png", ".trash/x.png", "city/.DS_Store"]
    others = ["notes.txt", "clip.gif", "raw.heic"]
    own = [
        "old/b_drawn.jpg",
        "old/b_instanceIds.png",
    ]  # as earlier versions left them
    for name in (*names, *hidden, *others, *own):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    for name, comment in (("out/a_drawn.jpg", MARK), ("a_instanceIds.png", MARK), ("i.png", "x")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_picture(tmp_path / name, RGB, comment=comment)
    found = find_pictures([tmp_path])
    assert sorted(found.pictures) == ["B", "a", "c", "city/g", "d", "e", "f", "h_drawn", "i"]
    assert found.passed_over == {
        "with a dot in front": 3,
        "of other kinds": 4,
        "drawn by this command": 4,
    }
    assert "3 with a dot in front" in found.passed_over_text()
    # named itself, anything is tried
    assert list(find_pictures([tmp_path / "clip.gif", tmp_path / "._a.png"]).pictures) == [
        "clip",
        "._a",
    ]


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (4, 2)).save(tmp_path / folder / "x.png")
    with pytest.raises(PictureError, match="both would be written as x"):
        find_pictures([tmp_path / "a", tmp_path / "b"])
    assert list(find_pictures([tmp_path]).pictures) == ["a/x", "b/x"]
    assert list(find_pictures([tmp_path / "a", tmp_path / "a" / "x.png"]).pictures) == ["x"]
