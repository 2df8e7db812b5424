"""What there is to predict: folders, patterns, videos, cameras and shards, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2_cityscapes.engine.prediction import PictureError, find_pictures, inputs
from d2_cityscapes.engine.prediction.marks import MARK
from d2_cityscapes.png import write_picture
from d2_cityscapes.shards.file import ShardError

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


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures of three cities, one of them drawn, a text and a video."""
    root = tmp_path / "tree"
    for name in ("ulm/a.png", "ulm/b.jpg", "bonn/deep/c.png", "bonn/a_drawn.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_picture(root / name, RGB, comment=MARK if "drawn" in name else "")
    (root / "ulm" / "notes.txt").touch()
    (root / "ulm" / "film.mp4").touch()
    return root


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*/*.png", ["ulm/a"]),
        ("**/*.png", ["bonn/deep/c", "ulm/a"]),
        ("ulm/[ab].*", ["a", "b"]),
        ("ulm/?.png", ["a"]),
        ("**", ["bonn/deep/c", "ulm/a", "ulm/b"]),
    ],
)
def test_patterns(tree: Path, pattern: str, names: list[str]) -> None:
    """Names are the paths below the first part with a wildcard."""
    found = find_pictures([f"{tree}/{pattern}"])
    assert sorted(found.pictures) == names
    if pattern == "**":
        assert found.passed_over == {"drawn by this command": 1, "of other kinds": 1}
        assert list(found.videos) == ["ulm/film"]


def test_a_name_with_brackets_is_that_file(tmp_path: Path) -> None:
    write_picture(tmp_path / "a[1].png", RGB)
    assert list(find_pictures([tmp_path / "a[1].png"]).pictures) == ["a[1]"]
    with pytest.raises(PictureError, match=r"\[2\]\.png: matches no file"):
        find_pictures([tmp_path / "a[2].png"])


def test_videos_are_taken_where_they_are_named(tree: Path) -> None:
    film = tree / "ulm" / "film.mp4"
    assert list(find_pictures([film]).videos) == ["film"]
    in_folder = find_pictures([tree])
    assert not in_folder.videos
    assert "1 videos (name them" in in_folder.passed_over_text()


def test_cameras() -> None:
    found = find_pictures(["camera:7", "/dev/video3"])
    assert {name: video.path for name, video in found.videos.items()} == {
        "video7": "/dev/video7",
        "video3": "/dev/video3",
    }
    assert all(video.live for video in found.videos.values())


def test_shards_by_name_folder_and_file(datasets: Path) -> None:
    folder = datasets / "cityscapes_shards"
    by_name = find_pictures(["cityscapes_shards_val"]).records
    assert len(by_name) == 8
    assert len(find_pictures([folder]).records) == 16
    file = sorted(folder.glob("val_*.safetensors"))[0]
    of_file = find_pictures([file]).records
    assert of_file.keys() < by_name.keys()
    for name, record in of_file.items():
        assert record.read().shape == (64, 128, 3)
        assert (record.read() == by_name[name].read()).all()
    with pytest.raises(PictureError, match=r"cityscapes_shards_vall: missing; nearest: "):
        find_pictures(["cityscapes_shards_vall"])
    with pytest.raises(PictureError, match="coco_2017_val: a dataset that is not of shards"):
        find_pictures(["coco_2017_val"])


def test_a_name_in_a_shard_stays_in_the_output(datasets: Path, monkeypatch) -> None:
    monkeypatch.setattr(inputs, "image_name", lambda name: f"../{name}")
    with pytest.raises(ShardError, match="is not the name of a file; nothing is written"):
        find_pictures([datasets / "cityscapes_shards"])
