"""What is taken for a file of a dataset, and what is passed over."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from d2_cityscapes.sources.errors import SourceError
from d2_cityscapes.sources.listing import by_name, list_files, missing_file, other_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "town/a_x.png",
        "town/b_x.PNG",
        "town/c_x.bmp",
        "town/d_y.png",
        "town/._a_x.png",
        ".ipynb_checkpoints/a_x.png",
        "town/.DS_Store",
        "town/readme.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to("town")
    return tmp_path


def test_endings_count_in_upper_case_and_links_are_followed(folder, caplog):
    found = list_files(folder, "*/*", "_x", (".png",))
    names = sorted(str(path.relative_to(folder)) for path in found)
    assert names == ["linked/a_x.png", "linked/b_x.PNG", "town/a_x.png", "town/b_x.PNG"]
    (message,) = caplog.messages
    names = ".ipynb_checkpoints/a_x.png, linked/._a_x.png, ..."
    assert f"passed over 3 files with a dot in front ({names})" in message


def test_nothing_is_said_where_nothing_is_passed_over(folder, caplog):
    with caplog.at_level(logging.INFO):
        assert list_files(folder, "*/*", "_y", (".png",))
        assert not list_files(folder / "nowhere", "*/*", "_x", (".png",))
    assert not caplog.messages


def test_pictures_of_other_kinds_are_named(folder):
    others = other_pictures(folder, "town/*", "_x", (".png",))
    assert [path.name for path in others] == ["c_x.bmp"]
    assert missing_file(folder / "town/c_x.png") == ", but c_x.bmp is there; convert it to PNG"
    assert missing_file(folder / "town/e_x.png") == ""


def test_one_image_in_two_files_is_refused(folder):
    (folder / "town/a_x.PNG").touch()
    found = list_files(folder, "town/*", "_x", (".png",))
    with pytest.raises(SourceError, match=r"a_x.png: the same image as a_x.PNG; remove one"):
        by_name(found, lambda path: path.stem)
